"""What is to be raised where, as a file that the host writes and its workers and templates look at.

Workers are told by a page of memory, for a file would have to be read at each function that they enter. Of all processes that come
to the entry, the one that makes the claim's file raises.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import attrs

from tests.injection.tracing import Target

__all__ = ["PLACE", "Plan", "Wish"]

#: The environment variable that names the plan's directory.
PLACE = "SNAKEPIT_INJECTION"
_SIZE = 4096
_HEAD = 8


@attrs.frozen
class Wish:
    """What the host wants.

    Attributes:
        number: It is another one than the last one.
        side: Who is meant: ``"worker"`` or ``"template"``; ``""``: nobody.
        target: The function; None: count the entries of all.
        entry: Which entry of it, in one process.
    """

    number: int
    side: str
    target: Target | None
    entry: int


class Plan:
    """The plan of a run, from either end.

    Args:
        place: A directory of its own.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        fd = os.open(place / "plan", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _SIZE)
            self._page = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self._number = self._meant = 0

    # ---- the host's end --------------------------------------------------------------------------

    def want(self, side: str, target: Target | None, entry: int) -> None:
        """From now on."""
        self._meant = self._number + 1
        self._write(side, target, entry)

    def rest(self) -> None:
        """Nothing, until the next wish; what the last one came to is still told."""
        self._write("", None, 0)

    def _write(self, side: str, target: Target | None, entry: int) -> None:
        self._number += 1
        body = json.dumps([side, None if target is None else attrs.astuple(target), entry]).encode()
        assert len(body) < _SIZE - _HEAD - 4
        self._page[_HEAD : _HEAD + 4] = len(body).to_bytes(4, "little")
        self._page[_HEAD + 4 : _HEAD + 4 + len(body)] = body
        # Last: by it the rest is noticed.
        self._page[:_HEAD] = self._number.to_bytes(_HEAD, "little")

    def claimed(self) -> dict[str, Any] | None:
        """Who has raised, and where it came from; None: nobody."""
        try:
            found: dict[str, Any] = json.loads((self.place / f"claim-{self._meant}").read_text() or "{}")
        except FileNotFoundError:
            return None
        return found

    def counted(self) -> dict[Target, int]:
        """How often each function was entered in the process that entered it most, up to a few."""
        found: dict[Target, int] = {}
        for path in self.place.glob(f"count-{self._meant}-*"):
            for line in path.read_text().splitlines():
                *fields, count = json.loads(line)
                target = Target(*fields)
                found[target] = max(count, found.get(target, 0))
        return found

    # ---- the other ends --------------------------------------------------------------------------

    def changed(self, number: int) -> bool:
        """Whether there is another wish than this one."""
        return self._page[:_HEAD] != number.to_bytes(_HEAD, "little")

    def wish(self) -> Wish:
        """The present one."""
        number = int.from_bytes(self._page[:_HEAD], "little")
        if not number:
            return Wish(0, "", None, 0)
        size = int.from_bytes(self._page[_HEAD : _HEAD + 4], "little")
        side, target, entry = json.loads(self._page[_HEAD + 4 : _HEAD + 4 + size])
        return Wish(number, side, None if target is None else Target(*target), entry)

    def claim(self, number: int, path: list[str]) -> bool:
        """Whether this process is the one that raises."""
        try:
            fd = os.open(self.place / f"claim-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        os.write(fd, json.dumps({"pid": os.getpid(), "path": path}).encode())
        os.close(fd)
        return True

    def note(self, number: int, target: Target, count: int) -> None:
        """So often was it entered here by now."""
        fd = os.open(
            self.place / f"count-{number}-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        os.write(fd, (json.dumps([*attrs.astuple(target), count]) + "\n").encode())
        os.close(fd)
