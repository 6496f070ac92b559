"""Chooses how a worker on this machine is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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


def launcher_for(config: PoolConfig, run: Place) -> Launcher:
    """The launcher of a pool's workers, whose processes are written down in the run's book."""
    if config.command is not None:
        return CommandLauncher(config.command, run.run_dir, run)
    return local_launcher(config.start_method, run)


def local_launcher(start_method: str, book: ProcessBook | None = None) -> Launcher:
    """The launcher for ``"fork_server"`` or ``"spawn"``; ``book`` is where its processes are written down."""
    return ForkServerLauncher(book) if start_method == "fork_server" else SpawnLauncher(book)
