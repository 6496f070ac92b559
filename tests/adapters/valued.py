"""Tools with annotations of values that JSON does not have."""

from __future__ import annotations

import enum
import ipaddress
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import snakepit_trio as sp


class Unit(enum.Enum):
    BYTES = "bytes"
    WORDS = "words"


@sp.tool
def size(path: pathlib.Path, unit: Unit = Unit.BYTES) -> int:
    text = path.read_text()
    return len(text) if unit is Unit.BYTES else len(text.split())


@sp.tool
async def within(address: ipaddress.IPv4Address, network: ipaddress.IPv4Network) -> bool:
    return address in network


@sp.tool
def matches(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    yield from pattern.findall(text)


@sp.tool
def echo(value: Any) -> Any:
    return value


@sp.tool
async def echo_async(value: Any) -> Any:
    return value


@sp.tool
def echoes(values: list[Any]) -> Iterator[Any]:
    yield from values
