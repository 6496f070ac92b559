"""The options of a pool as type checkers see them are those that there are."""

from __future__ import annotations

import os
import typing
from collections.abc import Sequence
from typing import Any

import attrs

import snakepit_trio as sp
from snakepit_trio.config.keywords import PoolOptions

#: What a converter of the field takes beyond its type.
WIDER: dict[str, Any] = {
    "python": str | os.PathLike[str] | None,
    "cwd": str | os.PathLike[str] | None,
    "devices": typing.Literal["auto"] | Sequence[str] | None,
}


def test_the_keywords_are_the_fields_of_a_pools_configuration() -> None:
    fields = typing.get_type_hints(sp.PoolConfig)
    named = [field.name for field in attrs.fields(sp.PoolConfig) if field.name != "adapter"]
    keywords = typing.get_type_hints(PoolOptions)
    assert list(keywords) == named
    assert keywords == {name: WIDER.get(name, fields[name]) for name in named}
