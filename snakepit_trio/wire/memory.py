"""Large binary values through shared memory instead of through the socket.

Host and worker share one file for each worker: memory without a path, made by the host, of which on Linux nobody can
change the size. A worker inherits it, or opens it when it finds that it is on its host's machine
(:mod:`.memory_handoff`). It is sparse, and divided into *places*, half of them the host's and half of them the worker's.
The sender of a value copies it into a place of its own and names the place in the message; the receiver looks at it
there, through a read-only view: a *lease*, which ends with the last view of it, wherever its program has kept it. What
lies in a leased place may be sent back, or once more, without being copied.

A table in the file tells the owner of a place how often the other side has let go of it and has sent it back. The place
is used again when all that was sent either way has been let go of; nothing about that travels on the wire, and no view
ever changes. Both sides keep their mappings for the next message: mapping ten megabytes anew costs as much as copying them.

A place is reserved in full before it is used, so that memory which is not there is an error here; without room, within the
limit or at all, values travel inline. The memory goes with the last process that has it, however that ends.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable

from snakepit_trio import _forks, _platform

from .frames import Buffer, FrameError, Payload, SharedBlock
from .mapping import LARGE_PAGE, Mapping, collapse, discard, fill, map_file

__all__ = ["FILE_NAME", "HEAD", "THRESHOLD", "Budget", "SharedMemory", "make_file"]

#: Binary values of at least this many bytes travel through shared memory; smaller ones are copied faster.
THRESHOLD = 256 * 1024

#: The name of such a file where the system shows one.
FILE_NAME = "snakepit"
#: The first bytes of the file, for other uses.
HEAD = 1 << 20

_PLACES = 256
#: The distance between places, and the capacity of one.
_STRIDE = 1 << 32
_SIZE = (1 + 2 * _PLACES) * _STRIDE
_NAME = re.compile(r"([io])(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])", re.ASCII)
_PAGE = mmap.PAGESIZE
_U32 = 0xFFFF_FFFF
#: Unused places are kept for the next message up to this many bytes.
_KEPT = 64 * 1024 * 1024


def make_file() -> int:
    """Create a file that host and worker share; the descriptor is close-on-exec.

    Raises:
        OSError: There is no room, too many files are open, or a limit forbids files of this (apparent) size.
    """
    return _platform.make_shared_file(FILE_NAME, _SIZE)


class Budget:
    """The bytes that the places of several workers may have together; None for no limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used: int = 0

    def take(self, size: int) -> bool:
        """Reserve this many bytes, if available, and return whether they were."""
        if self.limit is not None and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give reserved bytes back."""
        self.used -= size


class _Table:
    """For each place, how often the other side has released it and has sent it back; written by the other side."""

    def __init__(self, fd: int, owner: str) -> None:
        counts = map_file(fd, HEAD, _PAGE).view(2 * 2 * 4 * _PLACES).cast("I")
        first = 0 if owner == "i" else 2 * _PLACES
        self._counts = counts[first : first + 2 * _PLACES]

    def let_go(self, index: int) -> None:
        self._counts[2 * index] = self._counts[2 * index] + 1 & _U32

    def sent_back(self, index: int) -> None:
        self._counts[2 * index + 1] = self._counts[2 * index + 1] + 1 & _U32

    def read(self, index: int) -> tuple[int, int]:
        # In this order, because a view is sent back before it is released.
        let_go = self._counts[2 * index]
        return let_go, self._counts[2 * index + 1]


class _Place:
    """One of this side's places."""

    __slots__ = ("came_back", "collapsed", "lent", "mapping", "size", "used")

    def __init__(self, size: int, mapping: Mapping, gone: tuple[int, int]) -> None:
        self.size = size
        self.mapping = mapping
        #: The number of times it was sent, and that a value sent back was released here.
        self.lent, self.came_back = gone
        self.used = 0
        #: The number of bytes, from its beginning, in large pages.
        self.collapsed = 0


class _Lease:
    """A viewed place of the other side, and its mapping."""

    __slots__ = ("end", "index", "mapping", "owner")

    def __init__(self, owner: str, index: int, mapping: Mapping, end: int) -> None:
        self.owner = owner
        self.index = index
        self.mapping = mapping
        self.end = end


class SharedMemory:
    """One side of the memory shared with one worker. Safe to use from several threads.

    Args:
        side: ``"i"`` for the host, ``"o"`` for the worker: the prefix of its places' names.
        share: Returns a new descriptor of the file, or None if there is none (any more). None: there is no file.
        budget: The budget of this side's places.
        limit: The most bytes that one message may refer to.
    """

    def __init__(self, side: str, share: Callable[[], int | None] | None, budget: Budget, limit: int) -> None:
        self._own, self._theirs = side, "o" if side == "i" else "i"
        self._share = share
        self._budget = budget
        self._limit = limit
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._own_table: _Table | None = None
        self._theirs_table: _Table | None = None
        self._places: dict[int, _Place] = {}
        #: The mapped places of the other side.
        self._mapped: dict[int, Mapping] = {}
        self._leases: set[_Lease] = set()
        self._ended: deque[_Lease] = deque()
        self._settling = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    def __repr__(self) -> str:
        return f"<SharedMemory {self._own} places={len(self._places)} leases={len(self._leases)}>"

    @property
    def sizes(self) -> list[int]:
        """Return the bytes of each of this side's places."""
        return [place.size for place in self._places.values()]

    # ---- the sender's part ---------------------------------------------------------------------------

    def lend(self, payload: Payload) -> Payload:
        """Return the payload with its large buffers in shared memory, as far as there is room."""
        if not payload.buffers or self._closed or self._budget.limit == 0:
            return payload
        buffers = [self._put(buffer) for buffer in payload.buffers]
        return Payload(payload.encoding, payload.data, buffers)

    def _put(self, buffer: Buffer) -> Buffer:
        if isinstance(buffer, SharedBlock):
            return buffer
        size = memoryview(buffer).nbytes
        if not THRESHOLD <= size <= _STRIDE:
            return buffer
        with self._lock:
            try:
                if not self._open():
                    return buffer
                known = self._again(buffer, size) if self._leases else None
                if known is not None:
                    return known
                index = self._free_place(size)
            except OSError:
                return buffer
            if index is None:
                return buffer
            place = self._places[index]
            place.lent += 1
        try:
            fill(place.mapping.memory, buffer, size)
        except BaseException:
            place.lent -= 1
            raise
        return SharedBlock(f"{self._own}{index}", 0, size)

    def _again(self, buffer: Buffer, size: int) -> SharedBlock | None:
        """Return the block of a buffer that is the better part of a viewed place, so that it need not be copied."""
        numpy = sys.modules.get("numpy")
        if numpy is None:
            return None
        address = numpy.frombuffer(buffer, numpy.uint8).__array_interface__["data"][0]
        for lease in self._leases.copy():
            offset = address - lease.mapping.address
            if offset >= 0 and offset + size <= lease.end <= 2 * size:
                if lease.owner == self._own:
                    self._places[lease.index].lent += 1
                else:
                    assert self._theirs_table is not None
                    self._theirs_table.sent_back(lease.index)
                return SharedBlock(f"{lease.owner}{lease.index}", offset, size)
        return None

    def _free_place(self, size: int) -> int | None:
        """Return a free place of at least this size, a new one if necessary; None without room."""
        free = [index for index, place in self._places.items() if self._is_free(index, place)]
        fitting = [index for index in free if self._places[index].size >= size]
        if fitting:
            best = min(fitting, key=lambda index: self._places[index].size)
            self._trim([index for index in free if index != best], _KEPT)
            place = self._places[best]
            place.used += 1
            if place.used > 1 and place.collapsed < place.size:
                # It is used repeatedly, which makes this worthwhile. One part at a time, because it takes as long as
                # copying ten times as much, and the event loop waits.
                collapse(place.mapping, place.collapsed, min(LARGE_PAGE, place.size - place.collapsed))
                place.collapsed += LARGE_PAGE
            return best
        wanted = -(-size // _PAGE) * _PAGE
        index = next((index for index in range(_PLACES) if index not in self._places), None)
        if index is None:
            return None
        at = _start(self._own, index)
        if not self._budget.take(wanted):
            self._trim(free, 0)
            if not self._budget.take(wanted):
                return None
        try:
            assert self._own_table is not None
            _platform.reserve_space(self._file, at, wanted)
            mapping = map_file(self._file, at, wanted, populate=True)
            self._places[index] = _Place(wanted, mapping, self._own_table.read(index))
        except BaseException:
            self._budget.give(wanted)
            _platform.punch_hole(self._file, at, wanted)
            raise
        return index

    def _is_free(self, index: int, place: _Place) -> bool:
        assert self._own_table is not None
        let_go, sent_back = self._own_table.read(index)
        return let_go == place.lent & _U32 and sent_back == place.came_back & _U32

    def _trim(self, free: list[int], keep: int) -> None:
        for index in free:
            if keep > 0:
                keep -= self._places[index].size
            if keep <= 0:
                place = self._places.pop(index)
                self._budget.give(place.size)
                _platform.punch_hole(self._file, _start(self._own, index), place.size)

    # ---- the receiver's part -------------------------------------------------------------------------

    def borrow(self, payload: Payload) -> Payload:
        """Return the payload with views of its blocks in shared memory.

        Raises:
            FrameError: A buffer is not in a place of the file, or their sum exceeds the limit.
        """
        blocks = [buffer for buffer in payload.buffers if isinstance(buffer, SharedBlock)]
        if not blocks:
            return payload
        if sum(block.size for block in blocks) > self._limit:
            raise FrameError("more is in shared memory than a message may hold")
        views = [self._view(buffer) if isinstance(buffer, SharedBlock) else buffer for buffer in payload.buffers]
        return Payload(payload.encoding, payload.data, views)

    def _view(self, block: SharedBlock) -> memoryview:
        found = _NAME.fullmatch(block.name)
        end = block.offset + block.size
        if found is None or end > _STRIDE:
            raise FrameError("a buffer is in no place of the shared file")
        owner, index = found[1], int(found[2])
        with self._lock:
            try:
                if not self._open():
                    raise FrameError("a buffer is in shared memory, and there is none")
                mapping = self._mapping(owner, index, end)
            except OSError as exc:
                raise FrameError(f"a buffer's place can't be mapped: {exc}") from exc
            # Every view refers to the window, whose end therefore shows the end of all views; the mapping is reused.
            window = mapping.window()
            lease = _Lease(owner, index, mapping, end)
            weakref.finalize(window, self._end, lease).atexit = False
            self._leases.add(lease)
        return memoryview(window).cast("B")[block.offset : end].toreadonly()

    def _mapping(self, owner: str, index: int, end: int) -> Mapping:
        if owner == self._own:
            place = self._places.get(index)
            if place is None or end > place.size:
                raise FrameError("a buffer was sent back that was never sent")
            return place.mapping
        mapping = self._mapped.get(index)
        if mapping is None or mapping.size < end:
            mapping = self._mapped[index] = map_file(self._file, _start(owner, index), end)
        return mapping

    def _end(self, lease: _Lease) -> None:
        """Record the end of the last view of a place. Called by the collector: in any thread, at any point."""
        if os.getpid() != self._pid:
            return  # A fork of this process has released its copy.
        # One thread counts for all, so that no two count at once, and none waits here.
        self._ended.append(lease)
        while self._ended and self._settling.acquire(blocking=False):
            try:
                while self._ended:
                    self._settle(self._ended.popleft())
            finally:
                self._settling.release()

    def _settle(self, lease: _Lease) -> None:
        self._leases.discard(lease)
        if self._closed:
            rest = self._leases.copy()
            if not any(other.owner == lease.owner and other.index == lease.index for other in rest):
                discard(lease.mapping)
        elif lease.owner == self._own:
            place = self._places.get(lease.index)
            if place is not None:
                place.came_back += 1
        elif self._theirs_table is not None:
            self._theirs_table.let_go(lease.index)

    # ---- both ----------------------------------------------------------------------------------------

    @property
    def _file(self) -> int:
        assert self._fd is not None
        return self._fd

    def _open(self) -> bool:
        if self._fd is None and not self._closed:
            fd = None if self._share is None else self._share()
            if fd is None:
                return False
            try:
                self._own_table, self._theirs_table = _Table(fd, self._own), _Table(fd, self._theirs)
            except BaseException:
                os.close(fd)
                raise
            self._fd = _forks.keep(fd)
        return not self._closed

    def close(self) -> None:
        """Release the memory, except for viewed values, which stay unchanged until their last view ends.

        To be called when the other side is gone.
        """
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
            fd, self._fd = self._fd, None
            try:
                self._own_table = self._theirs_table = None
                self._mapped.clear()
                while self._places:
                    self._budget.give(self._places.popitem()[1].size)
                if fd is None:
                    return
                # A fork of this process may still have the file, so it is not left to the last descriptor and mapping.
                leased = sorted({_start(lease.owner, lease.index) for lease in self._leases.copy()})
                for begin, end in zip([_STRIDE, *(at + _STRIDE for at in leased)], [*leased, _SIZE], strict=True):
                    if begin < end:
                        _platform.punch_hole(fd, begin, end - begin)
            finally:
                if fd is not None:
                    _forks.close(fd)


def _start(owner: str, index: int) -> int:
    """Return the begin of a place in the file."""
    return (1 + index + (0 if owner == "i" else _PLACES)) * _STRIDE
