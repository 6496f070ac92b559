"""Tools that print, log and warn, also while they are imported."""

from __future__ import annotations

import logging
import os
import sys
import warnings

import anyio.lowlevel

import snakepit_trio as sp

log = logging.getLogger("talking")
print("imported")
log.warning("at import")


def _talk(who: str) -> None:
    print(f"{who} prints")
    print(f"{who} complains", file=sys.stderr)
    log.warning("%s warns, password=hunter2", who)
    log.info("%s says nothing that matters", who)
    warnings.warn(f"{who} is old", stacklevel=1)
    try:
        raise KeyError(who)
    except KeyError:
        log.exception("%s fails", who)


@sp.tool
def talk() -> None:
    _talk("plain")


@sp.tool
async def talk_async() -> None:
    await anyio.lowlevel.checkpoint()
    _talk("async")


@sp.tool
def flood(lines: int) -> None:
    for number in range(lines):
        print(number, "x" * 100)


@sp.tool
def die() -> None:
    print("begins to die", end="")
    log.critical("dies")
    os._exit(3)
