"""Parts of a file, mapped into memory by the system's own calls.

:mod:`mmap` keeps a descriptor open for each mapping, so a program that keeps a thousand arrays would run out of them; it
can't say at which address a mapping begins, on which large pages depend.
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
    """A part of a file in memory. It is unmapped when nobody has :attr:`memory`, a window or a view of either any more.

    Attributes:
        address: Where it begins.
        size: Its bytes.
        memory: It, as an object with the buffer protocol; may be longer than the part, and is not to be touched there.
    """

    __slots__ = ("_kind", "address", "memory", "size")

    def __init__(self, address: int, size: int, length: int) -> None:
        self.address: int = address
        self.size: int = size
        self._kind: Any = ctypes.c_ubyte * length
        self.memory: Any = self._kind.from_address(address)
        weakref.finalize(self.memory, _libc.munmap, address, length).atexit = False

    def view(self, size: int) -> memoryview:
        """Its first bytes, to be read and written."""
        return memoryview(self.memory).cast("B")[:size]

    def window(self) -> Any:
        """Another object with the same memory, whose end tells the end of all views that were made of it."""
        made = self._kind.from_address(self.address)
        made.keeps = self.memory
        return made


def map_file(fd: int, offset: int, size: int, *, populate: bool = False) -> Mapping:
    """Map so many bytes from a multiple of the page size on, for reading and writing.

    Args:
        fd: The file.
        offset: Where they begin in it.
        size: How many.
        populate: All pages at once: a fault for each would cost more than to fill them.

    Raises:
        OSError: There is no room.
    """
    # A power of two, so that there are few kinds of arrays: ctypes keeps each for ever.
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
    """Put a part of a mapping into large pages, as far as the system has some: it is then copied faster.

    Args:
        mapping: Which.
        begin: Where, a multiple of ``LARGE_PAGE``.
        size: How many bytes; what is no whole large page stays as it is.
    """
    size -= size % LARGE_PAGE
    if size:
        _platform.collapse_pages(mapping.address + begin, size)


def discard(mapping: Mapping) -> None:
    """Free what is in the file where this is mapped; it reads as zeros from then on."""
    _platform.discard_pages(mapping.address, -(-mapping.size // _PAGE) * _PAGE)


def fill(memory: Any, buffer: Any, size: int) -> None:
    """Copy a buffer of so many bytes to the beginning of some memory."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        memoryview(memory).cast("B")[:size] = memoryview(buffer).cast("B")
    else:
        # Without the GIL, so that nobody waits for a hundred megabytes; and faster than mmap's own copy.
        numpy.copyto(numpy.frombuffer(memory, numpy.uint8, size), numpy.frombuffer(buffer, numpy.uint8))
