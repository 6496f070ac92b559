"""Large binary values through shared memory in files with names: for workers that have not inherited one (:mod:`.memory`).

One *arena* for each worker and direction: numbered segments under ``/dev/shm``, made by the sender, and a table of one
byte for each, in a segment of its own. The sender fills a segment, sets its byte and names it in the message; the
receiver maps it, looks at it through a read-only view, and clears the byte when the last view is gone, wherever its program
has kept it. Only then is the segment used again. Nothing about that travels on the wire, and no view ever changes. Both
sides keep their mappings for the next message: mapping ten megabytes anew costs as much as copying them.

A segment is reserved in full before it is used, so a full ``/dev/shm`` is an error here and not a SIGBUS later; without
room, within the limit or at all, values travel inline. The host unlinks a worker's segments when the worker is gone,
and those of a killed host are unlinked by the next run; views that exist then stay valid, for a mapping needs no name.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .frames import Buffer, FrameError, Payload, SharedBlock
from .mapping import fill

__all__ = [
    "THRESHOLD",
    "Arena",
    "Borrower",
    "Budget",
    "Segments",
    "available",
    "find_proof",
    "leave_proof",
    "prefix_of",
    "remove",
]

#: Binary values of at least this many bytes travel through shared memory; below, mapping costs more than copying.
THRESHOLD = 256 * 1024

_DIRECTORY = "/dev/shm"
_PLACES = 256
#: What a segment's byte in the table says.
_FREE, _TAKEN, _DROPPED = range(3)
_NUMBERS = re.compile(r"(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\.(\d{1,9})", re.ASCII)
_PAGE = mmap.PAGESIZE
_PROOF = 32
#: Unused segments are kept for the next message up to so many bytes in one arena.
_KEPT = 64 * 1024 * 1024
# All pages at once: a fault for each would cost more than the copy.
_FLAGS = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


def available() -> bool:
    """Whether this system has shared memory in files."""
    return os.path.isdir(_DIRECTORY) and os.access(_DIRECTORY, os.W_OK) and hasattr(os, "posix_fallocate")


def prefix_of(run_id: str, worker_id: str) -> str:
    """What the names of a worker's segments begin with, in both directions."""
    return f"sp-{run_id}-{worker_id}-"


def leave_proof(prefix: str) -> bytes:
    """Write something into shared memory that only who has the same can find. Returns it; without room, nobody will.

    It stays until :func:`remove` is called for the prefix.
    """
    proof = secrets.token_bytes(_PROOF)
    with contextlib.suppress(OSError), _map(f"{prefix}p", os.O_CREAT | os.O_EXCL, _PROOF) as segment:
        segment[:] = proof
    return proof


def find_proof(prefix: str, proof: bytes) -> bool:
    """Whether it is in this process's shared memory, too, and left by the same user, who can then read what we leave."""
    try:
        fd = os.open(f"{_DIRECTORY}/{prefix}p", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return len(proof) == _PROOF and os.fstat(fd).st_uid == os.geteuid() and os.read(fd, _PROOF + 1) == proof
    except OSError:
        return False
    finally:
        os.close(fd)


def remove(prefix: str) -> list[str]:
    """Unlink every segment of this user whose name begins so. Returns the names."""
    found = []
    # No glob: for each worker that has ever ended it would keep a pattern, compiled.
    names = os.listdir(_DIRECTORY) if prefix.startswith("sp-") and os.path.isdir(_DIRECTORY) else ()
    for name in names:
        if name.startswith(prefix):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(_DIRECTORY, name))
                found.append(name)
    return found


class Budget:
    """Bytes that several arenas may have together; None for no limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Reserve so many bytes, if they are there."""
        if self.limit is not None and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give them back."""
        self.used -= size


def _map(name: str, flags: int, size: int) -> mmap.mmap:
    """Open a segment; ``size`` 0 means all of it. A new one is reserved in full."""
    path = f"{_DIRECTORY}/{name}"
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        if flags & os.O_CREAT:
            try:
                os.posix_fallocate(fd, 0, size)
            except OSError:
                os.unlink(path)
                raise
        return mmap.mmap(fd, size, flags=_FLAGS)
    finally:
        os.close(fd)


class Arena:
    """The sender's side. Safe to use from several threads.

    Args:
        prefix: What the segments' names begin with: :func:`prefix_of` the worker, and ``i`` or ``o``.
        budget: What all arenas of this sender may have.
    """

    def __init__(self, prefix: str, budget: Budget) -> None:
        self._prefix = prefix
        self._budget = budget
        self._lock = threading.Lock()
        self._table: mmap.mmap | None = None
        self._segments: dict[int, mmap.mmap] = {}
        self._generations = [0] * _PLACES
        self._closed = False

    def __repr__(self) -> str:
        return f"<Arena {self._prefix} segments={len(self._segments)}>"

    def lend(self, payload: Payload) -> Payload:
        """The same payload, with its large buffers in shared memory as far as there is room."""
        if not payload.buffers or self._closed or self._budget.limit == 0:
            return payload
        buffers = [self._place(buffer) for buffer in payload.buffers]
        return Payload(payload.encoding, payload.data, buffers)

    def _place(self, buffer: Buffer) -> Buffer:
        if isinstance(buffer, SharedBlock):
            return buffer
        size = len(buffer) if isinstance(buffer, bytes | bytearray) else buffer.nbytes
        if size < THRESHOLD:
            return buffer
        with self._lock:
            try:
                index = self._segment(size)
            except OSError:
                return buffer
            if index is None:
                return buffer
            assert self._table is not None
            self._table[index] = _TAKEN
        fill(self._segments[index], buffer, size)
        return SharedBlock(self._name(index), 0, size)

    def _name(self, index: int) -> str:
        return f"{self._prefix}{index}.{self._generations[index]}"

    def _segment(self, size: int) -> int | None:
        """A free segment of at least this size, a new one if need be; None when there is no room."""
        if self._closed:
            return None
        if self._table is None:
            self._table = _map(f"{self._prefix}t", os.O_CREAT | os.O_EXCL, _PAGE)
        free = [index for index in self._segments if self._table[index] == _FREE]
        fitting = [index for index in free if len(self._segments[index]) >= size]
        if fitting:
            best = min(fitting, key=lambda index: len(self._segments[index]))
            self._trim([index for index in free if index != best], _KEPT)
            return best
        wanted = -(-size // _PAGE) * _PAGE
        if not self._budget.take(wanted):
            self._trim(free, 0)
            if not self._budget.take(wanted):
                return None
        index = next((index for index in range(_PLACES) if index not in self._segments), None)
        try:
            if index is not None:
                # A name is used once: the receiver may have the last one's mapping still.
                self._generations[index] += 1
                self._segments[index] = _map(self._name(index), os.O_CREAT | os.O_EXCL, wanted)
                self._table[index] = _FREE
                return index
        except OSError:
            self._budget.give(wanted)
            raise
        self._budget.give(wanted)
        return None

    def _trim(self, free: list[int], keep: int) -> None:
        for index in free:
            if keep > 0:
                keep -= len(self._segments[index])
            if keep <= 0:
                self._drop(index)

    def _drop(self, index: int) -> None:
        segment = self._segments.pop(index)
        self._budget.give(len(segment))
        with contextlib.suppress(BufferError):  # Another thread is filling it; it goes with that thread's view.
            segment.close()
        if self._table is not None and self._table[index] == _FREE:
            self._table[index] = _DROPPED
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{_DIRECTORY}/{self._name(index)}")

    def close(self) -> None:
        """Unlink everything. What the receiver looks at stays."""
        with self._lock:
            self._closed = True
            for index in list(self._segments):
                self._drop(index)
            if self._table is not None:
                self._table.close()
                self._table = None
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{_DIRECTORY}/{self._prefix}t")


class _Mapped:
    """A segment that the receiver has mapped."""

    __slots__ = ("generation", "lease", "memory")

    def __init__(self, generation: int, memory: mmap.mmap) -> None:
        self.generation = generation
        self.memory = memory
        self.lease: weakref.ref[Any] | None = None


class Borrower:
    """The receiver's side.

    Args:
        prefix: The sender's.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._table: mmap.mmap | None = None
        self._mapped: dict[int, _Mapped] = {}

    def borrow(self, payload: Payload) -> Payload:
        """The same payload with views in the places of what is in shared memory.

        Raises:
            FrameError: A buffer is not in a segment of the sender's.
        """
        if not any(isinstance(buffer, SharedBlock) for buffer in payload.buffers):
            return payload
        views = [self._view(buffer) if isinstance(buffer, SharedBlock) else buffer for buffer in payload.buffers]
        return Payload(payload.encoding, payload.data, views)

    def _view(self, block: SharedBlock) -> memoryview:
        found = _NUMBERS.fullmatch(block.name.removeprefix(self._prefix))
        if found is None or not block.name.startswith(self._prefix):
            raise FrameError("a buffer is in a segment that is not the sender's")
        index, generation = int(found[1]), int(found[2])
        end = block.offset + block.size
        try:
            if self._table is None:
                self._table = _map(f"{self._prefix}t", 0, _PAGE)
            mapped = self._segment(block.name, index, generation)
        except (OSError, ValueError) as exc:
            raise FrameError(f"a buffer's segment can't be mapped: {exc}") from exc
        if end > len(mapped.memory):
            raise FrameError("a buffer ends after its segment")
        if mapped.lease is not None and mapped.lease() is not None:
            raise FrameError("a segment was sent again before it was given back")
        numpy = sys.modules.get("numpy")
        if numpy is None:
            # Every view holds the mapping, so this one is the lease, and can't be used for another message.
            view = memoryview(mapped.memory)
            mapped.lease = weakref.ref(mapped.memory, self._returns(index))
            del self._mapped[index]
            return view.toreadonly()[block.offset : end]
        # Every view holds the array, whose end therefore tells the end of them all; the mapping is used again.
        lease = numpy.frombuffer(mapped.memory, numpy.uint8, block.size, block.offset)
        mapped.lease = weakref.ref(lease, self._returns(index))
        return memoryview(lease).toreadonly()

    def _segment(self, name: str, index: int, generation: int) -> _Mapped:
        assert self._table is not None
        for other in [other for other in self._mapped if self._table[other] == _DROPPED]:
            # The sender has unlinked it; only this mapping keeps its memory.
            self._mapped.pop(other).memory.close()
        mapped = self._mapped.get(index)
        if mapped is None or mapped.generation != generation:
            mapped = self._mapped[index] = _Mapped(generation, _map(name, 0, 0))
        return mapped

    def _returns(self, index: int) -> Callable[[object], None]:
        table = self._table
        assert table is not None

        def give_back(dead: object) -> None:
            table[index] = _FREE

        return give_back

    def close(self) -> None:
        """Map nothing more. Views that exist stay valid."""
        # The memory is kept by the views that are out, and goes with the last of them.
        self._table = None
        self._mapped.clear()


class Segments:
    """One side's part in it, both ways.

    Args:
        side: ``"i"`` for the host, ``"o"`` for the worker.
        prefix: The worker's; see :func:`prefix_of`.
        budget: What this side's segments may have.
    """

    def __init__(self, side: str, prefix: str, budget: Budget) -> None:
        self._prefix = prefix
        self._arena = Arena(f"{prefix}{side}", budget)
        self._borrower = Borrower(f"{prefix}{'o' if side == 'i' else 'i'}")
        self.lend = self._arena.lend
        self.borrow = self._borrower.borrow

    def close(self) -> None:
        """Unlink everything, also what the other side has made: to be called when it is gone."""
        self._arena.close()
        self._borrower.close()
        remove(self._prefix)
