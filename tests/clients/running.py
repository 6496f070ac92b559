"""A runtime with a bridge, and the programs of this package as its clients."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

import snakepit_trio as sp

__all__ = ["STOCK", "Live", "bridged", "call", "environment", "live", "payload", "raw", "stock", "value"]

STOCK = Path(__file__).resolve().with_name("stock.py")


@asynccontextmanager
async def bridged(*pools: sp.PoolConfig, **options: Any) -> AsyncIterator[sp.Runtime]:
    """A runtime with a bridge on a free port of the loopback, unless said otherwise."""
    chosen = list(pools) or [sp.PoolConfig(adapter="tests.adapters.basic", size=1)]
    bridge = sp.BridgeConfig(**{"address": "tcp:127.0.0.1:0", **options})
    async with sp.open_runtime(sp.RuntimeConfig(pools=chosen, bridge=bridge)) as runtime:
        yield runtime


def environment(runtime: sp.Runtime, stubs: Path, **more: str) -> dict[str, str]:
    assert runtime.bridge is not None
    return {**os.environ, "SNAKEPIT_TOKEN": runtime.bridge.token, "PYTHONPATH": str(stubs), **more}


async def stock(kind: str, runtime: sp.Runtime, stubs: Path, steps: list[Any], **more: str) -> list[Any]:
    """Run a script of RPCs in a client of its own, with ``more`` in its environment; gives what came of each."""
    assert runtime.bridge is not None
    done = await anyio.run_process(
        [sys.executable, str(STOCK), kind, runtime.bridge.address, json.dumps(steps)],
        env=environment(runtime, stubs, **more), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


class Live:
    """A client that is told what to call while it runs; see ``live.py``.

    Attributes:
        said: What came of each call, by its key.
    """

    def __init__(self, process: anyio.abc.Process) -> None:
        self.process = process
        self.said: dict[str, list[Any]] = {}
        self._news = anyio.Event()

    async def listen(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                key, what = json.loads(line)
                self.said.setdefault(key, []).append(what)
            self._news.set()

    async def begin(self, key: str, method: str, request: dict[str, Any]) -> None:
        """Have it make a call, without waiting for what comes of it."""
        assert self.process.stdin is not None
        await self.process.stdin.send(json.dumps([key, method, request]).encode() + b"\n")

    async def hears(self, key: str, test: Callable[[list[Any]], object]) -> list[Any]:
        """Wait until what a call has said passes a test."""
        with anyio.fail_after(20):
            while not test(self.said.get(key, [])):
                self._news = anyio.Event()
                await self._news.wait()
        return self.said[key]


@asynccontextmanager
async def live(runtime: sp.Runtime, stubs: Path) -> AsyncIterator[Live]:
    """A client of its own, for as long as the block lasts."""
    assert runtime.bridge is not None
    program = [sys.executable, str(STOCK.with_name("live.py")), runtime.bridge.address]
    async with await anyio.open_process(program, env=environment(runtime, stubs), stderr=None) as process:
        made = Live(process)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(made.listen)
            yield made
            nursery.cancel_scope.cancel()


def payload(value: Any) -> dict[str, Any]:
    return {"encoding": "ENCODING_JSON", "data": base64.b64encode(json.dumps(value).encode()).decode()}


def raw(encoding: str, data: bytes) -> dict[str, Any]:
    return {"encoding": encoding, "data": base64.b64encode(data).decode()}


def value(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["payload"]["data"]))


def call(tool: str, params: Any = None, **fields: Any) -> list[Any]:
    options = fields.pop("options", {})
    return ["ExecuteTool", {"tool": tool, "payload": payload(params or {}), **fields}, options]
