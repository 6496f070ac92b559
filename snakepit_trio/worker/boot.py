"""The first steps of a worker process: read the boot message, arm the lifeline, serve, report."""

from __future__ import annotations

import atexit
import os
import sys

import msgspec

from snakepit_trio.wire.marks import Marks
from snakepit_trio.wire.startup import Boot, Report

from .lifeline import Lifeline, end_children

__all__ = ["read_boot", "run_worker"]

_LONGEST = 16 * 1024 * 1024
#: How much later than the connection the lifeline may be cut when a host is killed on a busy machine, in seconds.
_LINGER = 1.0


def _read_exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        data = os.read(fd, size)
        if not data:
            raise EOFError("the host went away before it had said what to do")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def read_boot(fd: int) -> Boot:
    """Read the boot message, and not a byte more.

    Raises:
        EOFError: The host is gone.
        ValueError: It is not a boot message.
    """
    size = int.from_bytes(_read_exactly(fd, 4), "big")
    if size > _LONGEST:
        raise ValueError(f"a boot message of {size} bytes")
    return msgspec.json.decode(_read_exactly(fd, size), type=Boot)


def run_worker(lifeline_fd: int, report_fd: int, marks_fd: int) -> int:
    """Be a worker until there is nothing left to do. Returns the exit code."""
    # The first to be registered is the last to run: user code may end its children in its own way before.
    atexit.register(end_children)
    os.set_inheritable(report_fd, False)
    os.set_inheritable(marks_fd, False)
    marks = Marks(marks_fd)
    boot = read_boot(lifeline_fd)
    lifeline = Lifeline(lifeline_fd)
    os.environ.update(boot.env)
    known = set(sys.path)
    sys.path[:] = [*(entry for entry in boot.path if entry not in known), *sys.path] if boot.path else sys.path
    unreported = [report_fd]

    def report(message: Report) -> None:
        if unreported:
            fd = unreported.pop()
            data = memoryview(msgspec.json.encode(message))
            while data:
                data = data[os.write(fd, data) :]
            os.close(fd)

    try:
        from .server import run

        code, host_lost = run(boot, report, marks)
        if host_lost:
            lifeline.linger(_LINGER)
        return code
    finally:
        for fd in unreported:
            os.close(fd)
        lifeline.close()
