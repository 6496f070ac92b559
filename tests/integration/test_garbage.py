"""What has ended keeps no bytes until the garbage collector comes by: that counts objects, and not how large they are."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio

BASIC, EVIL = "tests.adapters.basic", "tests.adapters.evil"
LARGE = 600_000


@contextmanager
def kept() -> Iterator[list[str]]:
    """What holds large values in cycles that nothing else refers to, of those that the block has left."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    before = len(gc.garbage)
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for each in gc.garbage[before:]:
            held = gc.get_referents(each)
            for value in held:
                if isinstance(value, bytes | bytearray | str | memoryview):
                    if len(value) > LARGE // 2:
                        found.append(f"{type(each).__name__}: {repr(each)[:200]}")
                elif not gc.is_tracked(value):
                    held += gc.get_referents(value)
    finally:
        gc.set_debug(0)
        del gc.garbage[before:]
        gc.enable()


async def ended(client: Any, other: Any) -> None:
    """Calls of every end, each with much in it."""
    data = {"value": "x" * LARGE}
    assert len(await client.execute("echo", data)) == LARGE
    with pytest.raises(sp.ToolError):
        await client.execute("raise_text", {"text": "x" * LARGE})
    with pytest.raises(sp.InvalidParameter):
        await client.execute("echo", {**data, "more": 1})
    with pytest.raises(sp.RequestTimeout):
        await client.execute("echo", data, timeout=1e-4)
    with anyio.move_on_after(1e-3):
        await client.execute("echo", data)
    # One that is left early keeps the chunk that was under way: contextlib's frames and an exception refer to each other.
    async with other.stream("count_and_note", {"n": 4, "marker": "/dev/null", "size": LARGE}) as chunks:
        assert [len(chunk) async for chunk in chunks] == [LARGE] * 4
    with pytest.raises(sp.ToolError):
        async with other.stream("count_and_note", {"n": 4, "marker": "/" + "x" * LARGE}) as chunks:
            async for _ in chunks:
                pass


@pytest.mark.parametrize("through", ["pool", "bridge"])
async def test_nothing_large_is_left_to_the_garbage_collector(through: str) -> None:
    pools = [sp.PoolConfig(adapter=EVIL, size=1), sp.PoolConfig(name="basic", adapter=BASIC, size=1)]
    bridge = sp.BridgeConfig(token="right")
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge)) as runtime:
        assert runtime.bridge is not None
        async with sp.connect(runtime.bridge.address, token="right") as client:
            pair: tuple[Any, Any] = (runtime.pool(), runtime.pool("basic"))
            if through == "bridge":
                pair = client, client.pool("basic")
            await ended(*pair)
            with kept() as found:
                for _ in range(2):
                    await ended(*pair)
                # Those that were given up are still on their way back.
                for each in pair:
                    await each.execute(
                        "fine" if each is pair[0] else "add", None if each is pair[0] else {"a": 1, "b": 2}
                    )
            assert not found
