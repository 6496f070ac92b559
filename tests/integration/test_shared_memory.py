"""Large values go through shared memory, in all directions, and nothing of it is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

import snakepit_trio as sp
from snakepit_trio.wire import memory_handoff
from snakepit_trio.wire.memory import THRESHOLD, SharedMemory
from tests.elsewhere import open_pool_elsewhere
from tests.forms import linux_form

pytestmark = pytest.mark.anyio

ARRAYS = "tests.adapters.arrays"
ROOT = Path(__file__).resolve().parents[2]
BIG = 4 * THRESHOLD


def memories(pool: sp.Pool) -> list[SharedMemory]:
    """The host's part, for each worker."""
    return [
        worker._link._memory for slot in pool.supervisor.slots for worker in slot.workers if worker._link is not None
    ]


def through(memory: SharedMemory) -> tuple[int, int]:
    """How many values have gone through it: those of the host that it has places for, the worker's that it has let go of."""
    theirs = memory._theirs_table
    back = 0 if theirs is None else sum(theirs.read(index)[0] for index in memory._mapped)
    return sum(place.lent for place in memory._places.values()), back


class File:
    """The file that the only worker of a pool shares with its host."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def held(self) -> int:
        """Bytes of memory that it has, but for its first part, in which it is told what is free."""
        return os.fstat(self.fd).st_blocks * 512 - 2 * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def file_of(pool: sp.Pool) -> Iterator[File]:
    [worker] = [worker for slot in pool.supervisor.slots for worker in slot.workers]
    fd = worker._resources.process.share()
    assert fd is not None
    try:
        yield File(fd)
    finally:
        os.close(fd)


async def test_arrays_and_bytes_there_and_back() -> None:
    array = np.arange(BIG // 8, dtype=np.int64).reshape(4, -1)
    values: list[Any] = [array, array.tobytes(), bytearray(array.tobytes())]
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=2) as pool:
            found = [await pool.execute("echo", {"value": value}) for value in values]
            assert sum(map(len, (memory.sizes for memory in memories(pool))))
            assert any(memory._mapped for memory in memories(pool))
            small = await pool.execute("echo", {"value": array[:1, :100]})
            nested = await pool.execute("echo", {"value": {"a": [array, "x", array + 1]}})
        # All stay valid and the same after the pool has gone.
        assert [type(value) for value in found] == [np.ndarray, bytes, bytearray]
        assert found[0].shape == array.shape and found[0].dtype == array.dtype
        assert (found[0] == array).all() and not found[0].flags.writeable
        assert found[1:] == values[1:]
        assert (small == array[:1, :100]).all()
        assert (nested["a"][0] == array).all() and (nested["a"][2] == array + 1).all()


@linux_form("parts of a file are not given back before its end")
async def test_what_is_kept_is_all_that_is_left_of_a_pool() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            kept: list[Any] = []
            for number in range(3):
                kept.append(await pool.execute("echo", {"value": np.full(BIG, number, np.uint8)}))
                await pool.execute("echo", {"value": bytes(BIG)})
                kept.append(await pool.execute("made", {"size": BIG, "value": number}))
            with file_of(pool) as file:
                opened = File(os.dup(file.fd))
        try:
            assert [int(array[-1]) for array in kept] == [0, 0, 1, 1, 2, 2]
            while kept:
                assert opened.held <= len(kept) * BIG
                array = kept.pop()
                assert (array == len(kept) // 2).all()
                del array
            assert opened.held <= 0
        finally:
            os.close(opened.fd)


async def test_a_view_that_a_tool_keeps_never_changes() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            for number in (1, 2, 3):
                assert await pool.execute("keep", {"array": np.full(BIG, number, np.uint8)}) is False
            [memory] = memories(pool)
            assert len(memory.sizes) == 3
            assert await pool.execute("kept_sums") == [n * (BIG - 1) for n in (1, 2, 3)]
            # Given back: what follows needs no new place.
            for _ in range(10):
                await pool.execute("total", {"array": np.zeros(BIG, np.uint8)})
            assert len(memory.sizes) <= 3


async def test_what_comes_back_as_it_was_sent_is_not_copied_and_never_changes() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            [memory] = memories(pool)
            first = await pool.execute("echo", {"value": np.full(BIG, 1, np.uint8)})
            assert memory._mapped == {}, "the worker has copied it"
            # The tool keeps it, and gives it back; the host lets go of it: the tool's must stay as it is.
            await pool.execute("keep", {"array": first})
            assert len(memory.sizes) == 1, "the host has copied it"
            second = await pool.execute("keep_and_return", {"array": np.full(BIG, 2, np.uint8)})
            third = await pool.execute("echo", {"value": [second, np.full(BIG, 3, np.uint8), second]})
            assert third[0].ctypes.data == second.ctypes.data == third[2].ctypes.data
            del second, third
            for number in range(4, 9):
                await pool.execute("echo", {"value": np.full(BIG, number, np.uint8)})
            assert await pool.execute("kept_sums") == [BIG - 1, 2 * (BIG - 1)]
            assert (first == 1).all()
            # A small part of what was sent is copied: it would keep all of it from being used again.
            part = await pool.execute("part", {"array": np.arange(2 * BIG, dtype=np.uint8), "size": THRESHOLD})
            assert memory._mapped and (part == np.arange(THRESHOLD, dtype=np.uint8)).all()
            # What a worker has made goes back to it as it is, too.
            made = await pool.execute("made", {"size": BIG, "value": 7})
            places = len(memory.sizes)
            assert await pool.execute("total", {"array": made}) == 7 * BIG
            assert len(memory.sizes) == places
            assert memory._leases
            del made, part, first
            assert not memory._leases


async def test_arrays_that_are_kept_take_no_descriptors() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            array = np.zeros(THRESHOLD, np.uint8)
            kept = [await pool.execute("echo", {"value": array})]
            before = len(os.listdir("/proc/self/fd"))
            kept += [await pool.execute("echo", {"value": array + number}) for number in range(1, 40)]
            assert len(os.listdir("/proc/self/fd")) <= before + 1
            # There are places for so many, and no more; the rest travels inline.
            kept += [await pool.execute("echo", {"value": array + number % 256}) for number in range(40, 300)]
            assert [int(view[-1]) for view in kept] == [number % 256 for number in range(300)]


async def test_a_stream_of_large_chunks_takes_only_what_is_under_way() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1, shm_limit=64 << 20) as pool:
            async with pool.stream("pieces", {"n": 200, "size": BIG}) as chunks:
                number = 0
                async for chunk in chunks:
                    assert chunk[0] == chunk[-1] == number
                    number += 1
            assert number == 200
            with file_of(pool) as file:
                assert 0 < file.held <= 64 << 20


@pytest.mark.parametrize("limit", [0, BIG])
async def test_without_room_values_travel_inline(limit: int) -> None:
    array = np.arange(BIG // 4, dtype=np.int64)
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1, shm_limit=limit) as pool:
            found = await pool.execute("echo", {"value": array})
            assert (found == array).all() and found.flags.aligned and not found.flags.writeable
            [memory] = memories(pool)
            assert memory.sizes == [] and memory._mapped == {}


@linux_form("parts of a file are not given back before its end")
async def test_a_worker_that_dies_with_a_value_leaves_nothing() -> None:
    array = np.ones(BIG, np.uint8)
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            for _ in range(3):
                [memory] = memories(pool)
                with file_of(pool) as file:
                    await pool.execute("echo", {"value": array})
                    assert file.held >= BIG
                    with pytest.raises(sp.WorkerCrashed):
                        await pool.execute("die_with", {"array": array})
                    while not memory._closed:
                        await anyio.sleep(0.005)
                    assert file.held <= 0
                await pool.wait_ready(timeout=20)
            # A call that may run again takes its array with it.
            assert (await pool.execute("echo", {"value": array}) == array).all()


async def test_cancelled_calls_give_their_places_back() -> None:
    array = np.ones(BIG, np.uint8)
    with anyio.fail_after(60):
        async with sp.open_pool(ARRAYS, size=1) as pool:
            for delay in [0, 0.0005, 0.001, 0.002] * 10:
                with anyio.move_on_after(delay):
                    await pool.execute("echo", {"value": array})
            await pool.execute("total", {"array": array})
            [memory] = memories(pool)
            assert len(memory.sizes) <= 3 and not memory._leases


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
import anyio, numpy as np, os, sys
import snakepit_trio as sp

async def main():
    async with sp.open_pool("tests.adapters.arrays", size=1) as pool:
        await pool.execute("keep", {"array": np.ones(1 << 22, np.uint8)})
        [inode] = {line.split()[4] for line in open("/proc/self/maps") if "memfd:snakepit" in line}
        print(inode, flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend="trio")
"""


def has_in_memory(inode: str) -> list[int]:
    """The processes that have this file in memory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        if any("memfd:snakepit" in line and line.split()[4] == inode for line in lines):
            found.append(int(pid))
    return found


@linux_form("its files have no name to be looked for")
async def test_what_a_killed_host_had_in_memory_goes_with_it() -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
    )  # fmt: skip
    assert host.stdout is not None
    inode = host.stdout.readline().strip()
    assert len(has_in_memory(inode)) == 2
    host.kill()
    host.communicate()
    with anyio.fail_after(20):
        while has_in_memory(inode):
            await anyio.sleep(0.01)
        # What it had on disk, the next run removes.
        async with sp.open_pool(ARRAYS, size=1):
            pass


# ---- workers that have not inherited the file ----------------------------------------------------


@linux_form("no process can open what another one has open")
async def test_a_worker_that_somebody_else_has_started_uses_its_hosts_file() -> None:
    """Both ways, and the same places over and over again, also where there is no numpy."""
    data = os.urandom(BIG)
    with anyio.fail_after(60):
        async with open_pool_elsewhere("tests.adapters.basic", size=1) as pool:
            for _ in range(10):
                assert await pool.execute("echo", {"value": data}) == data
            [memory] = memories(pool)
            assert through(memory) == (10, 10)
            # One more than is under way: a worker may let go of its arguments after its reply.
            assert len(memory.sizes) <= 2 and len(memory._mapped) <= 2
        assert memory._closed


async def test_a_worker_that_finds_no_file_of_its_hosts_gets_values_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(memory_handoff, "make_file", no_room)
    data = os.urandom(BIG)
    with anyio.fail_after(60):
        async with open_pool_elsewhere("tests.adapters.basic", size=1) as pool:
            assert await pool.execute("echo", {"value": data}) == data
            assert [through(memory) for memory in memories(pool)] == [(0, 0)]


@linux_form("no process can open what another one has open")
def test_only_the_file_that_was_offered_is_opened(tmp_path: Path) -> None:
    offered, other = memory_handoff.Offer(), memory_handoff.Offer()
    file = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    os.write(file, offered.proof)
    try:
        found = memory_handoff.open_offered(offered.pid, offered.fd, offered.proof)
        assert found is not None and os.path.sameopenfile(found, offered.fd)
        assert not os.get_inheritable(found)
        os.close(found)
        for pid, fd, proof in (
            (offered.pid, offered.fd, other.proof),
            (offered.pid, offered.fd, b""),
            (offered.pid, other.fd, offered.proof),
            (offered.pid, file, offered.proof),
            (offered.pid, 1 << 30, offered.proof),
            (1 << 31, offered.fd, offered.proof),
            (0, 0, offered.proof),
        ):
            assert memory_handoff.open_offered(pid, fd, proof) is None
        number = offered.fd
        offered.close()
        offered.close()
        assert memory_handoff.open_offered(os.getpid(), number, offered.proof) is None
    finally:
        os.close(file)
        offered.close()
        other.close()
