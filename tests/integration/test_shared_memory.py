"""Large values go through shared memory, in all directions, and nothing of it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import snakepit_trio as sp
from snakepit_trio.wire.shared import THRESHOLD, Arena, Borrower, Budget

pytestmark = pytest.mark.anyio

ARRAYS = "tests.adapters.arrays"
ROOT = Path(__file__).resolve().parents[2]
BIG = 4 * THRESHOLD


def segments(run_id: str) -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"sp-{run_id}-*")}


async def test_arrays_and_bytes_there_and_back() -> None:
    array = np.arange(BIG // 8, dtype=np.int64).reshape(4, -1)
    values: list[Any] = [array, array.tobytes(), bytearray(array.tobytes())]
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=2) as pool:
            found = [await pool.execute("echo", {"value": value}) for value in values]
            assert {name.rpartition("-")[2][0] for name in segments(pool.runtime.run_id)} == {"i", "o"}
            small = await pool.execute("echo", {"value": array[:1, :100]})
            nested = await pool.execute("echo", {"value": {"a": [array, "x", array + 1]}})
        # All stay valid and the same after the pool has gone.
        assert not segments(pool.runtime.run_id)
        assert [type(value) for value in found] == [np.ndarray, bytes, bytearray]
        assert found[0].shape == array.shape and found[0].dtype == array.dtype
        assert (found[0] == array).all() and not found[0].flags.writeable
        assert found[1:] == values[1:]
        assert (small == array[:1, :100]).all()
        assert (nested["a"][0] == array).all() and (nested["a"][2] == array + 1).all()


async def test_a_view_that_a_tool_keeps_never_changes() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            for number in (1, 2, 3):
                assert await pool.execute("keep", {"array": np.full(BIG, number, np.uint8)}) is False
            inward = [name for name in segments(pool.runtime.run_id) if name.rpartition("-")[2][0] == "i"]
            assert len(inward) == 1 + 3
            assert await pool.execute("kept_sums") == [n * (BIG - 1) for n in (1, 2, 3)]
            # Given back: what follows needs no new segment.
            for _ in range(10):
                await pool.execute("total", {"array": np.zeros(BIG, np.uint8)})
            assert len(segments(pool.runtime.run_id)) <= 4


async def test_a_stream_of_large_chunks_takes_only_what_is_under_way() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1, shm_limit=64 << 20) as pool:
            async with pool.stream("pieces", {"n": 200, "size": BIG}) as chunks:
                number = 0
                async for chunk in chunks:
                    assert chunk[0] == chunk[-1] == number
                    number += 1
            assert number == 200
            held = list(Path("/dev/shm").glob(f"sp-{pool.runtime.run_id}-*"))
            assert sum(path.stat().st_size for path in held) <= 64 << 20


@pytest.mark.parametrize("limit", [0, BIG])
async def test_without_room_values_travel_inline(limit: int) -> None:
    array = np.arange(BIG // 4, dtype=np.int64)
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1, shm_limit=limit) as pool:
            found = await pool.execute("echo", {"value": array})
            assert (found == array).all() and found.flags.aligned and not found.flags.writeable
            assert not {name for name in segments(pool.runtime.run_id) if not name.endswith("t")}


async def test_a_worker_that_dies_with_a_value_leaves_nothing() -> None:
    array = np.ones(BIG, np.uint8)
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            for _ in range(3):
                (worker,) = pool.workers()
                await pool.execute("echo", {"value": array})
                with pytest.raises(sp.WorkerCrashed):
                    await pool.execute("die_with", {"array": array})
                while any(worker.id in name for name in segments(pool.runtime.run_id)):
                    await anyio.sleep(0.005)
                await pool.wait_ready(timeout=20)
            # A call that may run again takes its array with it.
            assert (await pool.execute("echo", {"value": array}) == array).all()


async def test_cancelled_calls_give_their_segments_back() -> None:
    array = np.ones(BIG, np.uint8)
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            for delay in [0, 0.0005, 0.001, 0.002] * 10:
                with anyio.move_on_after(delay):
                    await pool.execute("echo", {"value": array})
            await pool.execute("total", {"array": array})
            assert len(segments(pool.runtime.run_id)) <= 8


async def test_a_result_that_can_not_be_sent() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            with pytest.raises(sp.InvalidPayload) as caught:
                await pool.execute("odd")
            assert caught.value.details["path"] == 'result["a"][1]'
        async with sp.open_pool(ARRAYS, size=1, unserializable="marker") as pool:
            marker = {"__snakepit_unserializable__": True, "type": "tests.adapters.arrays.Odd"}
            assert await pool.execute("odd") == {"a": [1, marker]}


HOST = """
import anyio, numpy as np, sys
import snakepit_trio as sp

async def main():
    async with sp.open_pool("tests.adapters.arrays", size=1) as pool:
        await pool.execute("keep", {"array": np.ones(1 << 22, np.uint8)})
        print(pool.runtime.run_id, flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend="trio")
"""


async def test_what_a_killed_host_leaves_the_next_run_removes() -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
    )  # fmt: skip
    assert host.stdout is not None
    run_id = host.stdout.readline().strip()
    assert segments(run_id)
    host.kill()
    host.communicate()
    async with sp.open_pool(ARRAYS, size=1):
        assert not segments(run_id)


async def test_a_name_from_elsewhere_is_refused() -> None:
    from snakepit_trio.wire.frames import FrameError, Payload, SharedBlock

    arena, borrower = Arena("sp-test-a-", Budget(None)), Borrower("sp-test-a-")
    try:
        lent = arena.lend(Payload(2, b"", [memoryview(bytes(THRESHOLD))]))
        assert isinstance(lent.buffers[0], SharedBlock)
        assert borrower.borrow(lent).buffers[0] == bytes(THRESHOLD)
        for block in (
            SharedBlock("sp-test-b-0.1", 0, 1),
            SharedBlock("sp-test-a-../0", 0, 1),
            SharedBlock("sp-test-a-t", 0, 1),
            SharedBlock("sp-test-a-256.1", 0, 1),
            SharedBlock("sp-test-a-1.1", 0, 1),
            SharedBlock("sp-test-a-0.1", 0, 1 << 40),
            SharedBlock("sp-test-a-0.1", 1 << 40, 1),
        ):
            with pytest.raises(FrameError):
                borrower.borrow(Payload(2, b"", [block]))
    finally:
        arena.close()
        borrower.close()
