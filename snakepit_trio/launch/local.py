"""Chooses how a worker on this machine is started."""

from __future__ import annotations

from .base import Launcher
from .fork_server import ForkServerLauncher
from .spawn import SpawnLauncher

__all__ = ["local_launcher"]


def local_launcher(start_method: str) -> Launcher:
    """The launcher for ``"fork_server"`` or ``"spawn"``."""
    return ForkServerLauncher() if start_method == "fork_server" else SpawnLauncher()
