"""Chooses how a worker on this machine is started."""

from __future__ import annotations

from .base import Launcher
from .spawn import SpawnLauncher

__all__ = ["local_launcher"]


def local_launcher(start_method: str) -> Launcher:
    """The launcher for a start method."""
    return SpawnLauncher()
