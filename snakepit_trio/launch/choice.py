"""Chooses the launcher of a pool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from snakepit_trio._config_checks import refuse
from snakepit_trio.observe.redaction import redact

from .base import LaunchContext, Launcher, LauncherFactory, ProcessBook, is_launcher, lacks
from .command import CommandLauncher
from .fork_server import ForkServerLauncher
from .interpreter import own_interpreter
from .registered import LOCAL, make_launcher
from .spawn import SpawnLauncher

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

__all__ = ["launcher_for", "local_launcher"]


class Place(ProcessBook, Protocol):
    """A run as launchers see it: a register of processes, and a private directory."""

    @property
    def run_dir(self) -> Path: ...

    @property
    def run_id(self) -> str: ...


def launcher_for(config: PoolConfig, run: Place, redact: Callable[[str], str] = redact) -> Launcher:
    """Return the launcher of a pool's workers, whose processes are recorded in the run's book.

    ``redact`` removes secrets from the output of processes that are starting.

    Raises:
        ConfigError: The named launcher can't be loaded, or is not one; or conflicts with another option; or this
            process has no interpreter for its workers.
    """
    chosen = config.launcher
    if is_launcher(chosen):
        launcher = chosen
    else:
        context = LaunchContext(
            config=config,
            run_id=run.run_id,
            run_dir=run.run_dir,
            book=run,
            most_workers=max(config.size, config.max_size or 0) + config.surge + config.spares,
            redact=redact,
        )
        launcher = _make(chosen, context)
        missing = lacks(launcher)
        if missing:
            refuse("launcher", chosen, f"one that makes a Launcher: what it has made lacks {missing}")
    if config.transport == "unix" and not launcher.same_machine:
        refuse("transport", "unix", "'auto' or 'tcp': the launcher's workers may be on other machines")
    return launcher


def _make(chosen: object, context: LaunchContext) -> Launcher:
    if not isinstance(chosen, str):
        return cast("LauncherFactory", chosen)(context)
    return _local(context) if chosen == LOCAL else make_launcher(chosen, context)


def _local(context: LaunchContext) -> Launcher:
    config = context.config
    if config.command is not None:
        return CommandLauncher(config.command, context.run_dir, context.book)
    if config.python is None:
        own_interpreter()
    return local_launcher(config.start_method, context.book, context.redact)


def local_launcher(
    start_method: str, book: ProcessBook | None = None, redact: Callable[[str], str] = redact
) -> Launcher:
    """Return the launcher for ``"fork_server"`` or ``"spawn"``.

    Args:
        start_method: The start method.
        book: The register of its processes.
        redact: Removes secrets from the output of processes.
    """
    return ForkServerLauncher(book, redact) if start_method == "fork_server" else SpawnLauncher(book)
