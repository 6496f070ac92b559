"""The check that a test leaves nothing behind."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import psutil

from snakepit_trio import _platform

__all__ = ["Footprint", "no_leaks"]

#: A process of the standard library that lives as long as the interpreter.
_ALLOWED_CHILDREN = ("multiprocessing.resource_tracker",)
#: Seconds. The time in which a thread must end after it was told to; anyio's threads on asyncio are told when their loop
#: ends.
_ENDING = 5.0


@attrs.frozen
class Footprint:
    """The resources of this process at one moment.

    Attributes:
        children: The process ids of all its descendants.
        threads: The threads that the interpreter would wait for.
        descriptors: The target of each open file descriptor.
        directories: The directories of runs, in the directory for temporary files.
    """

    children: frozenset[int]
    threads: frozenset[str]
    descriptors: dict[int, str]
    directories: frozenset[str]

    @classmethod
    def take(cls) -> Footprint:
        """Return the current resources."""
        return cls(
            children=frozenset(
                child.pid
                for child in _children()
                if not any(allowed in " ".join(_command(child)) for allowed in _ALLOWED_CHILDREN)
            ),
            threads=frozenset(f"{thread.name}-{thread.ident}" for thread in _threads()),
            descriptors=_platform.open_descriptors(),
            directories=frozenset(p.name for p in Path(tempfile.gettempdir()).glob("snakepit-*-*-*")),
        )

    def grown_since(self, before: Footprint) -> list[str]:
        """Return descriptions of the resources that did not exist before."""
        found = [f"child process {pid}" for pid in self.children - before.children]
        found += [f"thread {name}" for name in self.threads - before.threads]
        found += [
            f"file descriptor {fd} -> {target}"
            for fd, target in self.descriptors.items()
            if before.descriptors.get(fd) != target and "sqlite" not in target
        ]
        found += [
            f"temporary directory {name}" for name in self.directories - before.directories if not _is_of_others(name)
        ]
        return found


@contextmanager
def no_leaks() -> Iterator[None]:
    """Check that the block leaves no process, thread, file descriptor, shared memory or run directory behind.

    Raises:
        AssertionError: Something was left; the error lists it. Not raised if the block itself has raised.
    """
    # The collector then examines only objects created in the block, because a collection of the whole program is much
    # slower.
    frozen_already = gc.get_freeze_count() > 0
    if not frozen_already:
        gc.freeze()
    try:
        before = Footprint.take()
        threads = _threads()
        yield
        # Garbage that waits for the collector is not a leak.
        gc.collect()
        until = time.monotonic() + _ENDING
        for thread in _threads() - threads:
            thread.join(max(0.0, until - time.monotonic()))
        grown = Footprint.take().grown_since(before)
        if grown and not frozen_already:
            # Older garbage may hold it.
            gc.unfreeze()
            gc.collect()
            grown = Footprint.take().grown_since(before)
        assert not grown, "left behind: " + "; ".join(grown)
    finally:
        if not frozen_already:
            gc.unfreeze()


def _threads() -> set[threading.Thread]:
    """Return the threads that the interpreter would wait for."""
    return {thread for thread in threading.enumerate() if "Trio" not in thread.name and not thread.daemon}


def _children() -> list[psutil.Process]:
    """Return all descendants of this process."""
    return psutil.Process().children(recursive=True)


def _mine() -> set[int]:
    return {os.getpid(), *(child.pid for child in _children())}


def _is_of_others(directory: str) -> bool:
    """Return whether a directory belongs to a run of another program, by its host's pid in the name."""
    match = re.fullmatch(r"snakepit-[0-9a-f]+-(\d+)-.*", directory)
    return match is not None and int(match[1]) not in _mine() and psutil.pid_exists(int(match[1]))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
