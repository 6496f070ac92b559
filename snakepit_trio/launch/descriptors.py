"""The pipes and the begun table with which a worker process is started."""

from __future__ import annotations

import contextlib
import os

from snakepit_trio import _forks, _platform
from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.wire.begun import BegunTable, marks_file

__all__ = ["Descriptors", "make_descriptors"]


class Descriptors:
    """The four pipes of one worker, and its begun table.

    All are close-on-exec, no fork of this process keeps one, and the host's read ends do not block.

    Args:
        marks: Whether the worker writes a begun table.
        report: The path of a named pipe for its report, instead of an unnamed one.
    """

    def __init__(self, *, marks: bool = True, report: str | None = None) -> None:
        self._open: set[int] = set()
        self.marks: BegunTable | None = None
        self.marks_file: int = -1
        #: Whether the report's pipe has a name, by which other processes may open it, so that it does not end with the
        #: process.
        self.lifeline_read: int
        self.lifeline_write: int
        self.report_read: int
        self.report_write: int
        self.stdout_read: int
        self.stdout_write: int
        self.stderr_read: int
        self.stderr_write: int
        self.report_stays: bool = report is not None
        try:
            if marks:
                file = _forks.above_streams(marks_file())
                try:
                    self.marks = BegunTable(file)
                except BaseException:
                    os.close(file)
                    raise
                self.marks_file = file
            self.lifeline_read, self.lifeline_write = self._pipe()
            self.report_read, self.report_write = self._pipe() if report is None else self._named_pipe(report)
            self.stdout_read, self.stdout_write = self._pipe()
            self.stderr_read, self.stderr_write = self._pipe()
        except BaseException:
            self.close_all()
            raise
        for fd in (self.lifeline_write, self.report_read, self.stdout_read, self.stderr_read):
            os.set_blocking(fd, False)

    def _pipe(self) -> tuple[int, int]:
        pair = _forks.pipe()
        self._open.update(pair)
        return pair

    def _named_pipe(self, path: str) -> tuple[int, int]:
        os.mkfifo(path, 0o600)
        return self._opened(path, os.O_RDONLY | os.O_NONBLOCK), self._opened(path, os.O_WRONLY)

    def _opened(self, path: str, flags: int) -> int:
        with _forks.unforked():
            fd = _forks.keep(_forks.above_streams(os.open(path, flags | os.O_CLOEXEC)))
        self._open.add(fd)
        return fd

    @property
    def for_worker(self) -> tuple[int, int, int, int, int]:
        """Return the worker's ends: lifeline, report, marks, stdout, stderr."""
        return self.lifeline_read, self.report_write, self.marks_file, self.stdout_write, self.stderr_write

    def started(self) -> None:
        """Close the host's copies of the worker's ends, except for the lifeline, which has yet to be armed, and the marks."""
        self.close(*self.for_worker[1:])

    def arm_lifeline(self, group: int) -> None:
        """Arm the lifeline after its last write: from now on the kernel, where it can, ends the group when the pipe hangs
        up.
        """
        if self.lifeline_read in self._open:
            with contextlib.suppress(OSError):  # The process has already ended.
                _platform.arm_lifeline(self.lifeline_read, group)
            self.close(self.lifeline_read)

    def close(self, *fds: int) -> None:
        """Close those of these descriptors that are open."""
        for fd in fds:
            if fd in self._open:
                self._open.discard(fd)
                _forks.close(fd)

    def close_all(self) -> None:
        """Close all open descriptors, and release the begun table."""
        self.close(*tuple(self._open))
        if self.marks is not None:
            self.marks.close()


def make_descriptors(*, marks: bool = True, report: str | None = None) -> Descriptors:
    """Open the pipes of one worker; see :class:`Descriptors`.

    Raises:
        WorkerStartupError: Too many files are open.
    """
    try:
        return Descriptors(marks=marks, report=report)
    except OSError as exc:
        raise WorkerStartupError(f"no pipes for a worker: {exc}", details={"reason": str(exc)}) from exc
