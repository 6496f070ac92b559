"""Parts of a file mapped into memory by system calls.

:mod:`mmap` keeps a descriptor open for each mapping, so a program that keeps a thousand arrays would run out of them;
and it can't choose the address of a mapping, on which large pages depend.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import weakref
from typing import Any

from snakepit_trio import _platform

__all__ = ["LARGE_PAGE", "Mapping", "collapse", "discard", "fill", "map_file"]

_PAGE = mmap.PAGESIZE
#: Bytes.
LARGE_PAGE = 2 * 1024 * 1024
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value


def _system() -> Any:
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


_libc = _system()


class Mapping:
    """A part of a file in memory. It is unmapped when :attr:`memory`, its windows and their views are not referenced any
    more.

    Attributes:
        address: The begin of the mapping.
        size: The number of bytes.
        memory: The memory, as an object with the buffer protocol; it may be longer than the part, and must not be used
            there.
    """

    __slots__ = ("_kind", "address", "memory", "size")

    def __init__(self, address: int, size: int, length: int) -> None:
        self.address: int = address
        self.size: int = size
        self._kind: Any = ctypes.c_ubyte * length
        self.memory: Any = self._kind.from_address(address)
        weakref.finalize(self.memory, _libc.munmap, address, length).atexit = False

    def view(self, size: int) -> memoryview:
        """Return a read-write view of its first bytes."""
        return memoryview(self.memory).cast("B")[:size]

    def window(self) -> Any:
        """Return another object with the same memory, whose end shows the end of all views made from it."""
        made = self._kind.from_address(self.address)
        made.keeps = self.memory
        return made


def map_file(fd: int, offset: int, size: int, *, populate: bool = False) -> Mapping:
    """Map a number of bytes from a multiple of the page size, for reading and writing.

    Args:
        fd: The file.
        offset: The begin in the file.
        size: The number of bytes.
        populate: Map all pages at once, because a fault for each would cost more than filling them.

    Raises:
        OSError: There is no room.
    """
    # A power of two, so that there are few array types: ctypes keeps each for ever.
    length = max(_PAGE, 1 << (size - 1).bit_length())
    protection, share = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED
    if length < LARGE_PAGE:
        address = _mmap(None, length, protection, share, fd, offset)
    else:
        # Large pages must begin at a multiple of their size, in memory as in the file.
        room = _mmap(None, length + LARGE_PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        address = -(-room // LARGE_PAGE) * LARGE_PAGE
        try:
            _mmap(address, length, protection, share | _MAP_FIXED, fd, offset)
        except BaseException:
            _libc.munmap(room, length + LARGE_PAGE)
            raise
        for begin, end in ((room, address), (address + length, room + length + LARGE_PAGE)):
            if begin < end:
                _libc.munmap(begin, end - begin)
    try:
        mapping = Mapping(address, size, length)
    except BaseException:
        _libc.munmap(address, length)
        raise
    if populate:
        _platform.populate_pages(address, size)
    return mapping


def _mmap(address: int | None, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    found: int = _libc.mmap(address, length, protection, flags, fd, offset)
    if found == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def collapse(mapping: Mapping, begin: int, size: int) -> None:
    """Put a part of a mapping into large pages, as far as the system has some, because they are copied faster.

    Args:
        mapping: The mapping.
        begin: The begin of the part, a multiple of ``LARGE_PAGE``.
        size: The number of bytes; a partial large page is not changed.
    """
    size -= size % LARGE_PAGE
    if size:
        _platform.collapse_pages(mapping.address + begin, size)


def discard(mapping: Mapping) -> None:
    """Free the content of the file where this is mapped; it then reads as zeros."""
    _platform.discard_pages(mapping.address, -(-mapping.size // _PAGE) * _PAGE)


def fill(memory: Any, buffer: Any, size: int) -> None:
    """Copy a buffer of this many bytes to the beginning of some memory."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        memoryview(memory).cast("B")[:size] = memoryview(buffer).cast("B")
    else:
        # Without the GIL, so that a copy of a hundred megabytes blocks no thread; and faster than mmap's own copy.
        numpy.copyto(numpy.frombuffer(memory, numpy.uint8, size), numpy.frombuffer(buffer, numpy.uint8))
