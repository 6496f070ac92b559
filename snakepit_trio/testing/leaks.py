"""What a test may leave behind: nothing."""

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

#: The standard library's own process, which lives as long as the interpreter.
_ALLOWED_CHILDREN = ("multiprocessing.resource_tracker",)
#: How long a thread may take to end that was told to, in seconds: anyio's on asyncio are told when their loop ends.
_ENDING = 5.0


@attrs.frozen
class Footprint:
    """What this process holds at one moment.

    Attributes:
        children: Process ids of all its descendants.
        threads: Those that the interpreter would wait for.
        descriptors: What each open file descriptor leads to.
        directories: Directories of runs, in the directory for temporary files.
    """

    children: frozenset[int]
    threads: frozenset[str]
    descriptors: dict[int, str]
    directories: frozenset[str]

    @classmethod
    def take(cls) -> Footprint:
        """Look around."""
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
        """What is here now that was not then, in words."""
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
    """Check that the block leaves nothing behind: no process, thread, file descriptor, shared memory, directory of a run.

    Raises:
        AssertionError: It did; says what. Not when the block itself has raised.
    """
    # The collector then looks only at what the block makes; the whole program takes many times as long.
    frozen_already = gc.get_freeze_count() > 0
    if not frozen_already:
        gc.freeze()
    try:
        before = Footprint.take()
        threads = _threads()
        yield
        # What only waits for the collector is no leak.
        gc.collect()
        until = time.monotonic() + _ENDING
        for thread in _threads() - threads:
            thread.join(max(0.0, until - time.monotonic()))
        grown = Footprint.take().grown_since(before)
        if grown and not frozen_already:
            # Something older that has become garbage may hold it.
            gc.unfreeze()
            gc.collect()
            grown = Footprint.take().grown_since(before)
        assert not grown, "left behind: " + "; ".join(grown)
    finally:
        if not frozen_already:
            gc.unfreeze()


def _threads() -> set[threading.Thread]:
    """Those that the interpreter would wait for."""
    return {thread for thread in threading.enumerate() if "Trio" not in thread.name and not thread.daemon}


def _children() -> list[psutil.Process]:
    """All descendants of this process."""
    return psutil.Process().children(recursive=True)


def _mine() -> set[int]:
    return {os.getpid(), *(child.pid for child in _children())}


def _is_of_others(directory: str) -> bool:
    """Whether a directory is that of a run of another program on this machine, by its host's pid in the name."""
    match = re.fullmatch(r"snakepit-[0-9a-f]+-(\d+)-.*", directory)
    return match is not None and int(match[1]) not in _mine() and psutil.pid_exists(int(match[1]))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
