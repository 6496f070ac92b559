"""The first steps of a worker process: arm the lifeline, serve, report."""

from __future__ import annotations

import atexit
import os

from snakepit_trio import _forks
from snakepit_trio.wire.begun import BegunTable
from snakepit_trio.wire.startup import Boot, Report

from . import debugging
from .lifeline import Lifeline, end_children

__all__ = ["run_worker"]

#: Seconds. The delay by which the lifeline of a killed host may be cut later than the connection, on a busy machine.
_LINGER = 1.0


def run_worker(message: bytes, lifeline_fd: int, report_fd: int, marks_fd: int) -> int:
    """Run the worker until its end, and return the exit code.

    Args:
        message: The boot message, which has been read from the lifeline.
        lifeline_fd, report_fd, marks_fd: The descriptors from the host; owned from here on.
    """
    # Registered first and so run last, because user code may end its children in its own way before.
    atexit.register(end_children)
    os.set_inheritable(report_fd, False)
    os.set_inheritable(marks_fd, False)
    marks = BegunTable(marks_fd)
    lifeline = Lifeline(lifeline_fd)
    boot = Boot.decode(message)
    os.environ.update(boot.env)
    debugging.install()
    unreported = [_forks.keep(report_fd)]

    def report(said: Report) -> None:
        if unreported:
            fd = unreported.pop()
            data = memoryview(said.encode())
            while data:
                data = data[os.write(fd, data) :]
            _forks.close(fd)

    try:
        from .server import run

        code, host_lost = run(boot, report, marks)
        if host_lost:
            lifeline.linger(_LINGER)
        return code
    finally:
        for fd in unreported:
            _forks.close(fd)
        lifeline.close()
