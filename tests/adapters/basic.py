"""Tools of every kind that the integration tests need; nothing async, so the main thread runs them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import snakepit_trio as sp


@sp.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@sp.tool
def echo(value: Any) -> Any:
    return value


@sp.tool
def fail(message: str) -> None:
    raise ValueError(message)


@sp.tool
def fail_with(name: str) -> None:
    if name == "exit":
        sys.exit(3)
    if name == "unicode":
        b"\xff".decode()
    raise {"key": KeyError, "custom": CustomError}[name]("as asked")


class CustomError(RuntimeError):
    """An exception that only the worker knows."""


@sp.tool
def whoami(ctx: sp.ToolContext) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "worker_id": ctx.worker_id,
        "request_id": ctx.request_id,
        "attempt": ctx.attempt,
        "metadata": dict(ctx.metadata),
        "deadline": ctx.deadline,
        "session_id": ctx.session_id,
    }


@sp.tool
def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@sp.tool
def wait_for_file(marker: str, path: str) -> str:
    """Touch the marker, then wait for the file; deaf to a cancel."""
    with open(marker, "w"):
        pass
    while not os.path.exists(path):
        time.sleep(0.002)
    return "there"


@sp.tool
def wait_for_cancel(ctx: sp.ToolContext, marker: str) -> str:
    """Touch the marker, then wait for a cancel; touch a second marker when it comes."""
    with open(marker, "w"):
        pass
    while not ctx.cancelled:
        time.sleep(0.002)
    with open(marker + ".cancelled", "w"):
        pass
    ctx.raise_if_cancelled()
    return "never"


@sp.tool
def die(with_signal: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), with_signal)
    time.sleep(60)


@sp.tool(idempotent=True)
def die_once(marker: str) -> int:
    """Kill its worker the first time."""
    if not os.path.exists(marker):
        with open(marker, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return os.getpid()


@sp.tool(idempotent=True)
def die_always() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@sp.tool
def leave(code: int) -> None:
    print("last words", file=sys.stderr, flush=True)
    os._exit(code)


@sp.tool
def count(n: int) -> Iterator[int]:
    yield from range(n)


@sp.tool
def count_and_note(n: int, marker: str, size: int = 0) -> Iterator[int | bytes]:
    """Count, or give so many bytes each time; write how far it came when the generator is closed."""
    reached = -1
    try:
        for reached in range(n):
            yield bytes(size) if size else reached
    finally:
        with open(marker, "w") as file:
            file.write(str(reached))


@sp.tool
def count_then_fail(n: int) -> Iterator[int]:
    yield from range(n)
    raise ValueError("after the last")


@sp.tool
def unencodable() -> object:
    return object()


@sp.tool
def say(text: str) -> None:
    print(text, flush=True)


@sp.tool
def environment(name: str) -> str | None:
    """A variable of the worker's environment."""
    return os.environ.get(name)
