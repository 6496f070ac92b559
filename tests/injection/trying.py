"""Tries targets in processes of their own, one at a time, each of which goes on until a try has left a mark in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from tests.injection.tracing import Target

__all__ = ["Settings", "Trying", "Unfit", "trying"]

#: Seconds that one try may take, and a process before its first.
_LONGEST, _OPENING = 60.0, 90.0
#: Attempts at a process that comes to its first try.
_ATTEMPTS = 3


class Unfit(Exception):
    """The scenario fails without an injection."""


@attrs.frozen
class Settings:
    """What is tried.

    Attributes:
        side: One of ``sides.SIDES``.
        phase: ``"running"``, ``"opening"`` or ``"closing"``.
        backend: The event loop.
        store: Where sessions are kept: ``"memory"``, or the path of a file for SQLite after ``"sqlite:"``.
    """

    side: str = "host"
    phase: str = "running"
    backend: str = "trio"
    store: str = "memory"


class _Lines:
    """The lines that a child writes, each within a time."""

    def __init__(self, fd: int) -> None:
        self._found: list[str | None] = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, args=[fd], daemon=True).start()

    def _read(self, fd: int) -> None:
        with os.fdopen(fd) as file:
            for line in file:
                self._add(line)
        self._add(None)

    def _add(self, line: str | None) -> None:
        with self._arrived:
            self._found.append(line)
            self._arrived.notify_all()

    def next(self, within: float) -> dict[str, Any] | None:
        """None at the end.

        Raises:
            TimeoutError: There is none within so many seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: self._found, within):
                raise TimeoutError
            if self._found[0] is None:
                return None
            found: dict[str, Any] = json.loads(self._found.pop(0))  # type: ignore[arg-type]
            return found


class Trying:
    """Tries of one kind; see :func:`trying`."""

    def __init__(self, settings: Settings, place: Path) -> None:
        self._settings = settings
        self._place = place

    def counts(self) -> dict[Target, int]:
        """How often each function is entered.

        Raises:
            Unfit: The scenario fails by itself.
        """
        why: Any = None
        for _ in range(_ATTEMPTS):
            child, lines = self._start("--count")
            try:
                while (line := lines.next(_OPENING)) is not None:
                    if "counts" in line and not line["troubles"]:
                        return {Target(file, name, at): count for file, name, at, count in line["counts"]}
                    why = line
            except TimeoutError:
                why = "it hangs"
            finally:
                self._end(child, hangs=why == "it hangs")
        raise Unfit(json.dumps(why, indent=1))

    def run(self, targets: list[tuple[Target, int]]) -> Iterator[dict[str, Any]]:
        """Try these entries of functions; gives what has come of each.

        Raises:
            Unfit: The scenario fails by itself.
        """
        left, vain = list(targets), 0
        while left:
            done = 0
            for result in self._one_process(left):
                target, entry = left[done]
                done += 1
                yield {"target": [*attrs.astuple(target), entry], **result}
            left, vain = left[done:], 0 if done else vain + 1
            if vain == _ATTEMPTS:
                raise Unfit((self._place / "stderr").read_text(errors="replace")[-4000:])

    def _one_process(self, targets: list[tuple[Target, int]]) -> Iterator[dict[str, Any]]:
        path = self._place / "targets.json"
        path.write_text(json.dumps([[*attrs.astuple(target), entry] for target, entry in targets]))
        child, lines = self._start("--targets", str(path))
        doing = hangs = False
        last: dict[str, Any] | None = None
        try:
            limit = _OPENING
            while (line := lines.next(limit)) is not None:
                limit = _LONGEST
                if "begun" in line:
                    if last is not None:
                        yield last
                    doing, last = True, None
                elif "ended" in line or "torn" in line:
                    if doing:
                        doing, last = False, line
                    elif last is not None and "torn" in line:
                        # It was to close after a try that had left a mark.
                        last["closing"] = line["error"]
        except TimeoutError:
            hangs = True
        errors = self._end(child, hangs=hangs)
        if last is not None:
            yield {**last, "closing": errors} if hangs else last
        elif doing:
            yield {"path": None, "stderr": errors, **({"hang": True} if hangs else {"died": child.returncode})}

    def _start(self, *arguments: str) -> tuple[subprocess.Popen[bytes], _Lines]:
        settings = self._settings
        reading, writing = os.pipe()
        command = [
            sys.executable, "-m", "tests.injection.child", "--side", settings.side, "--phase", settings.phase,
            "--backend", settings.backend, "--store", settings.store, "--out", str(writing), *arguments,
        ]  # fmt: skip
        places = {"SNAKEPIT_STATE_DIR": str(self._place / "state"), "TMPDIR": str(self._place)}
        with open(self._place / "stderr", "wb") as errors:
            child = subprocess.Popen(command, pass_fds=[writing], stderr=errors, env={**os.environ, **places})
        os.close(writing)
        return child, _Lines(reading)

    def _end(self, child: subprocess.Popen[bytes], *, hangs: bool) -> str:
        """Wait for a child, or have it print its stacks and end; the last that it has printed."""
        if hangs:
            child.send_signal(signal.SIGABRT)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return (self._place / "stderr").read_text(errors="replace")[-8000:]


@contextmanager
def trying(settings: Settings) -> Iterator[Trying]:
    """A place for tries of one kind."""
    # Short: the path of a Unix socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="inj", ignore_cleanup_errors=True) as name:
        yield Trying(settings, Path(name))
