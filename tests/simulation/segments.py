"""Shared memory of the simulations: both sides of it in one process, and what holds of it whoever dies."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakepit_trio import _forks
from snakepit_trio.wire.frames import Buffer, SharedBlock
from snakepit_trio.wire.memory import THRESHOLD, Budget, SharedMemory, make_file

__all__ = ["Segments", "WorkerMemory"]

#: Bytes that one message may refer to.
_MOST = 64 << 20


class WorkerMemory(SharedMemory):
    """A worker's file, and the worker's side of it.

    Args:
        room: Bytes that its places may have; None: no limit.
    """

    def __init__(self, room: int | None) -> None:
        self._file_of_both: int | None = make_file()
        self._vanished = False
        super().__init__("o", self.share, Budget(room), _MOST)

    def share(self) -> int | None:
        """A new descriptor of it; None once the worker has died."""
        return None if self._file_of_both is None else os.dup(self._file_of_both)

    def vanish(self) -> None:
        """Its process has ended: the descriptors are closed, and nothing that is in the file changes any more. Idempotent."""
        self._vanished = self._closed = True
        self._own_table = self._theirs_table = None
        self._places.clear()
        self._mapped.clear()
        for fd in (self._file_of_both, self._fd):
            if fd is not None:
                (os.close if fd == self._file_of_both else _forks.close)(fd)
        self._file_of_both = self._fd = None

    def _settle(self, lease: Any) -> None:
        if self._vanished:
            self._leases.discard(lease)
        else:
            super()._settle(lease)


class _HostMemory(SharedMemory):
    """The host's side; counts what is done with it."""

    def __init__(self, seen: Counter[str], *args: Any) -> None:
        super().__init__(*args)
        self._seen = seen

    def _put(self, buffer: Buffer) -> Buffer:
        put = super()._put(buffer)
        if isinstance(buffer, SharedBlock) or memoryview(buffer).nbytes < THRESHOLD:
            return put
        self._seen["inline" if not isinstance(put, SharedBlock) else "lent" if put.name[0] == "i" else "sent back"] += 1
        return put

    def _view(self, block: SharedBlock) -> memoryview:
        self._seen["borrowed" if block.name[0] == "o" else "came back"] += 1
        return super()._view(block)

    def close(self) -> None:
        if not self._closed and self._leases:
            self._seen["outlived"] += 1
        super().close()


def _mapped() -> set[str]:
    """The mappings of places that this process has."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:snakepit" in line}


class Segments:
    """The host's sides of one simulation.

    Attributes:
        seen: What has been done with them: values were lent, borrowed, sent back uncopied, came back, had to travel inline, and
            outlived their worker.
    """

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._hosts: list[_HostMemory] = []
        self._budgets: dict[Budget, None] = {}
        self._mapped_before = _mapped()

    def make(self, side: str, share: Callable[[], int | None] | None, budget: Budget, limit: int) -> SharedMemory:
        """Stands for the class."""
        made = _HostMemory(self.seen, side, share, budget, limit)
        self._hosts.append(made)
        self._budgets[budget] = None
        return made

    def check(self) -> None:
        """Raise AssertionError when the books of the bytes do not hold now."""
        for budget in self._budgets:
            used = sum(sum(memory.sizes) for memory in self._hosts if memory._budget is budget)
            assert budget.used == used, f"{budget.used} bytes are counted, and the places have {used}"
            assert budget.limit is None or used <= budget.limit, f"{used} bytes of {budget.limit} are in use"

    def at_rest(self, workers: list[WorkerMemory]) -> None:
        """Raise AssertionError unless all that was lent has been let go of: no call is under way."""
        gc.collect()
        for memory in [*self._hosts, *workers]:
            assert not memory._leases, f"{memory!r} is looked at by nobody"
            kept = [index for index, place in memory._places.items() if not memory._is_free(index, place)]
            assert not kept, f"places {kept} of {memory!r} never came back"

    def after_the_end(self) -> None:
        """Raise AssertionError unless nothing is left of it: no bytes, no descriptors, no mappings."""
        gc.collect()
        self.check()
        for memory in self._hosts:
            assert memory._closed, f"{memory!r} was not closed"
            assert not memory._leases, f"{memory!r} is looked at by nobody"
        assert not any(budget.used for budget in self._budgets), "bytes of places that are gone are counted"
        assert not _mapped() - self._mapped_before, "a place is still mapped"
