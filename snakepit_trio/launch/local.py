"""Chooses how a worker on this machine is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from snakepit_trio.observe.redaction import redact

from .base import Launcher, ProcessBook
from .command import CommandLauncher
from .fork_server import ForkServerLauncher
from .spawn import SpawnLauncher

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

__all__ = ["launcher_for", "local_launcher"]


class Place(ProcessBook, Protocol):
    """A run, as launchers see it: a book, and a private directory."""

    @property
    def run_dir(self) -> Path: ...


def launcher_for(config: PoolConfig, run: Place, redact: Callable[[str], str] = redact) -> Launcher:
    """The launcher of a pool's workers, whose processes are written down in the run's book.

    ``redact`` takes secrets out of what the processes print while they start.
    """
    if config.command is not None:
        return CommandLauncher(config.command, run.run_dir, run)
    return local_launcher(config.start_method, run, redact)


def local_launcher(
    start_method: str, book: ProcessBook | None = None, redact: Callable[[str], str] = redact
) -> Launcher:
    """The launcher for ``"fork_server"`` or ``"spawn"``.

    Args:
        start_method: Which of them.
        book: Where its processes are written down.
        redact: Takes secrets out of what processes print.
    """
    return ForkServerLauncher(book, redact) if start_method == "fork_server" else SpawnLauncher(book)
