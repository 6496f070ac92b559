"""Workers that a host must take for ones on another machine, started here without anything that tells them where they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sniffio

import snakepit_trio as sp
from snakepit_trio.launch.spawn import SpawnLauncher
from snakepit_trio.runtime import assemble
from snakepit_trio.supervision.run import open_run
from snakepit_trio.wire.transports import make_wire

__all__ = ["open_pool_elsewhere"]


class _Elsewhere(SpawnLauncher):
    same_machine = False


@asynccontextmanager
async def open_pool_elsewhere(adapter: str, **options: Any) -> AsyncIterator[sp.Pool]:
    """sp.open_pool, with such workers."""
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=adapter, **options)])
    wire = make_wire(sniffio.current_async_library())
    with open_run(config.state_dir) as run:
        async with assemble(config, run, wire, lambda pool, run: _Elsewhere()) as runtime:
            yield runtime.pool("default")
