"""What each option is when nobody says anything, and between what it may be: a change of that is a change for users."""

from __future__ import annotations

import math
from pathlib import Path

import attrs

import snakepit_trio as sp
from snakepit_trio import config
from snakepit_trio.policies.options import TIMEOUTS

KEPT = Path(__file__).with_name("options.txt")


def lines() -> list[str]:
    found = []
    for name in sorted(name for name in config.__all__ if name.endswith("Config")):
        for field in attrs.fields(getattr(config, name)):
            low, high = field.metadata.get("range", (None, None))
            bounds = "" if low is None else f", from {low}" + ("" if high == math.inf else f" to {high}")
            default = field.default
            shown = (
                "required"
                if default is attrs.NOTHING
                else "made"
                if isinstance(default, attrs.Factory)
                else repr(default)
            )  # type: ignore[arg-type]
            found.append(f"{name}.{field.name} = {shown}{bounds}")
    return [*found, *(f"timeouts {name!r} = {given}" for name, given in sorted(TIMEOUTS.items()))]


def test_no_default_and_no_bound_changes_unnoticed() -> None:
    assert KEPT.read_text().splitlines() == lines(), f"python -m {__name__} > {KEPT.name}, if it is meant to"


def test_the_profile_of_threads() -> None:
    assert sp.PoolConfig(adapter="m", profile="thread").threads == 10
    assert sp.PoolConfig(adapter="m", profile="thread", threads=3).threads == 3
    assert sp.PoolConfig(adapter="m").threads == 1


if __name__ == "__main__":
    print(*lines(), sep="\n")
