"""Tools that try to let secrets out in every way."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator

import snakepit_trio as sp

# Not in the arguments, where it would be found by its name.
SECRET = os.environ.get("CANARY_PASSWORD", "")
print(f"imported with password={SECRET}")


@sp.tool
def take(ctx: sp.ToolContext, password: str, text: str) -> str:
    print(f"{text} on stdout")
    print(f"{text} on stderr", file=sys.stderr, flush=True)
    logging.getLogger("leaky").error("logged %s", text)
    ctx.emit("leak", {"n": 1}, {"password": password, "text": text, "nested": [{"deep": text}]})
    return password


@sp.tool
def blow(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as exc:
        raise RuntimeError(f"it was {text}") from exc


@sp.tool
def typed(password: int) -> None:
    raise AssertionError


@sp.tool
def pour(text: str) -> Iterator[int]:
    yield 1
    raise ValueError(text)


@sp.tool
def ask(ctx: sp.ToolContext, text: str) -> None:
    ctx.call_host_sync("blow", {"text": text})


@sp.tool
def leave(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    os._exit(3)


@sp.tool
def linger(text: str, until: str) -> None:
    """Run until a file is there."""
    while not os.path.exists(until):
        time.sleep(0.005)
