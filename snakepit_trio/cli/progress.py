"""A progress bar on standard error that leaves standard output to the results."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["ProgressBar"]


class ProgressBar:
    """A bar on standard error while the block lasts, or nothing.

    Args:
        wanted: Whether to draw it; None for on a terminal only.
        total: How many steps there will be; None when that is not known.
        title: What stands before the bar.
        unit: What stands after the count; with None, the time that is left.
    """

    def __init__(self, wanted: bool | None, total: int | None, *, title: str, unit: str | None = None) -> None:
        self._wanted = sys.stderr.isatty() if wanted is None else wanted
        self._total = total
        self._title = title
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None
        self._shares_terminal = False

    def __enter__(self) -> ProgressBar:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            last = TimeRemainingColumn() if self._unit is None else TextColumn(self._unit)
            # rich would send whatever is printed to the bar's own console, which is standard error.
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), last,
                console=Console(stderr=True), redirect_stdout=False,
            )  # fmt: skip
            self._shares_terminal = self._bar.console.is_terminal and _is_one_terminal()
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, title: str | None = None) -> None:
        """Move the bar to ``done`` steps; a title stands in place of the bar's own."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=title or self._title)

    def print(self, line: str) -> None:
        """Print a line on standard output. Where the bar is on the same terminal, the line comes to stand above it."""
        if self._shares_terminal:
            self._bar.console.out(line, highlight=False)
        else:
            print(line, flush=True)


def _is_one_terminal() -> bool:
    """Whether standard output and standard error are the same terminal."""
    try:
        out, err = sys.stdout.fileno(), sys.stderr.fileno()
        return os.isatty(out) and os.isatty(err) and os.path.sameopenfile(out, err)
    except (AttributeError, OSError, ValueError):
        return False  # It is closed, or is no file.
