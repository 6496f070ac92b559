"""Chooses how the workers of a pool are started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from snakepit_trio.errors import ConfigError
from snakepit_trio.observe.redaction import redact

from .base import Launcher, ProcessBook
from .command import CommandLauncher
from .fork_server import ForkServerLauncher
from .interpreter import own_interpreter
from .spawn import SpawnLauncher

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

__all__ = ["launcher_for", "local_launcher"]


class Place(ProcessBook, Protocol):
    """A run, as launchers see it: a book, and a private directory."""

    @property
    def run_dir(self) -> Path: ...

    @property
    def run_id(self) -> str: ...


def launcher_for(config: PoolConfig, run: Place, redact: Callable[[str], str] = redact) -> Launcher:
    """The launcher of a pool's workers, whose processes are written down in the run's book.

    ``redact`` takes secrets out of what the processes print while they start.

    Raises:
        ConfigError: Ray is asked for, and is not installed; or this process has no interpreter for its workers.
    """
    if config.ray is not None:
        try:
            from .ray_workers import RayLauncher
        except ImportError as exc:
            raise ConfigError(
                f"launcher: expected snakepit-trio[ray] to be installed: {exc}",
                details={"source": "code", "key": "launcher", "expected": "snakepit-trio[ray] to be installed"},
            ) from exc
        most = max(config.size, config.max_size or 0) + config.surge + config.spares
        return RayLauncher(config.ray, run.run_id, most)
    if config.command is not None:
        return CommandLauncher(config.command, run.run_dir, run)
    if config.python is None:
        own_interpreter()
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
