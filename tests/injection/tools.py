"""Sync tools of every kind for the scenario."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import snakepit_trio as sp
import tests.injection.inside  # noqa: F401  It traces this process.

_log = logging.getLogger(__name__)


class Sync(sp.Adapter):
    """What a worker with one main thread serves."""

    def setup(self) -> None:
        self.served = 0

    def teardown(self) -> None:
        self.served = 0

    def health(self) -> bool:
        return True

    @sp.tool(idempotent=True)
    def add(self, a: int, b: int) -> int:
        self.served += 1
        return a + b

    @sp.tool(idempotent=True)
    def echo(self, value: Any) -> Any:
        return value

    @sp.tool
    def fail(self, message: str) -> None:
        raise ValueError(message)

    @sp.tool
    def unencodable(self) -> object:
        return object()

    @sp.tool(idempotent=True)
    def nap(self, ctx: sp.ToolContext, seconds: float) -> str:
        """Sleeps, and leaves when its caller is gone."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not ctx.cancelled:
            time.sleep(0.002)
        ctx.raise_if_cancelled()
        return "rested"

    @sp.tool
    def deaf(self, seconds: float) -> str:
        """Sleeps, and hears nothing."""
        time.sleep(seconds)
        return "rested"

    @sp.tool
    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    @sp.tool
    def count_then_fail(self, n: int) -> Iterator[int]:
        yield from range(n)
        raise ValueError("after the last")

    @sp.tool
    def blocks(self, n: int, size: int) -> Iterator[bytes]:
        for _ in range(n):
            yield bytes(size)

    @sp.tool
    def ask(self, ctx: sp.ToolContext, name: str, params: dict[str, Any], timeout: float | None = None) -> Any:
        return ctx.call_host_sync(name, params, timeout=timeout)

    @sp.tool
    def asked_stream(self, ctx: sp.ToolContext, n: int) -> Iterator[Any]:
        for index in range(n):
            yield ctx.call_host_sync("double", {"value": index})

    @sp.tool
    def say(self, ctx: sp.ToolContext, text: str) -> None:
        print(text, flush=True)
        print(text, file=sys.stderr, flush=True)
        _log.warning("%s", text)
        ctx.emit("scenario.said", {"length": len(text)}, {"text": text})

    @sp.tool
    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    @sp.tool(idempotent=True)
    def die_first(self, ctx: sp.ToolContext) -> int:
        if ctx.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return ctx.attempt

    @sp.tool
    def session_of(self, ctx: sp.ToolContext) -> str | None:
        return ctx.session_id
