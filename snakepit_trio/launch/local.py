"""Chooses how a worker on this machine is started."""

from __future__ import annotations

from .base import Launcher, ProcessBook
from .fork_server import ForkServerLauncher
from .spawn import SpawnLauncher

__all__ = ["local_launcher"]


def local_launcher(start_method: str, book: ProcessBook | None = None) -> Launcher:
    """The launcher for ``"fork_server"`` or ``"spawn"``; ``book`` is where its processes are written down."""
    return ForkServerLauncher(book) if start_method == "fork_server" else SpawnLauncher(book)
