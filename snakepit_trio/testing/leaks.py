"""What a test may leave behind: nothing. Linux only: it looks into /proc."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import psutil

__all__ = ["Footprint", "no_leaks"]

#: The standard library's own process, which lives as long as the interpreter.
_ALLOWED_CHILDREN = ("multiprocessing.resource_tracker",)


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
        descriptors = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                descriptors[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:
                continue
        return cls(
            children=frozenset(
                child.pid
                for child in psutil.Process().children(recursive=True)
                if not any(allowed in " ".join(_command(child)) for allowed in _ALLOWED_CHILDREN)
            ),
            threads=frozenset(
                f"{t.name}-{t.ident}" for t in threading.enumerate() if "Trio" not in t.name and not t.daemon
            ),
            descriptors=descriptors,
            directories=frozenset(p.name for p in Path(tempfile.gettempdir()).glob("snakepit-*")),
        )

    def grown_since(self, before: Footprint) -> list[str]:
        """What is here now that was not then, in words."""
        found = [f"child process {pid}" for pid in self.children - before.children]
        found += [f"thread {name}" for name in self.threads - before.threads]
        found += [
            f"file descriptor {fd} -> {target}"
            for fd, target in self.descriptors.items()
            if before.descriptors.get(fd) != target and "/proc/" not in target and "sqlite" not in target
        ]
        found += [f"temporary directory {name}" for name in self.directories - before.directories]
        return found


@contextmanager
def no_leaks() -> Iterator[None]:
    """Check that the block leaves nothing behind: no process, thread, file descriptor, shared memory, directory of a run.

    Raises:
        AssertionError: It did; says what. Not when the block itself has raised.
    """
    before = Footprint.take()
    yield
    # What only waits for the collector is no leak.
    gc.collect()
    grown = Footprint.take().grown_since(before)
    assert not grown, "left behind: " + "; ".join(grown)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
