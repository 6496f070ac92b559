"""Tools that give values back by each of the ways on which values travel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import snakepit_trio as sp


@sp.tool
def result(value: Any) -> Any:
    return value


@sp.tool
def chunk(value: Any) -> Iterator[Any]:
    yield value


@sp.tool
def through_the_host(ctx: sp.ToolContext, value: Any) -> Any:
    """To a host tool and back."""
    return ctx.call_host_sync("give_back", {"value": value})
