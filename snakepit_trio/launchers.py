"""The interface for launchers outside this package; docs/guides/launchers.md describes its use.

``PoolConfig(launcher=...)`` takes a :class:`Launcher`, a class or function that creates one from a
:class:`LaunchContext`, or the name of an entry point for such a class or function in the group
``snakepit_trio.launchers``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from snakepit_trio.wire.begun import BegunTable, begun_in, marks_file

from .launch.base import (
    Boot,
    Credentials,
    ExitStatus,
    LaunchContext,
    Launcher,
    LauncherFactory,
    NoBook,
    Output,
    ProcessBook,
    Report,
    WorkerProcess,
    WorkerSpec,
)
from .launch.fork_server import ForkServerLauncher
from .launch.futures import settled
from .launch.spawn import SpawnLauncher

if TYPE_CHECKING:
    # Needs the package cryptography, which the extra "ray" installs.
    from .launch.authority import Authority

__all__ = [
    "Authority",
    "BegunTable",
    "Boot",
    "Credentials",
    "ExitStatus",
    "ForkServerLauncher",
    "LaunchContext",
    "Launcher",
    "LauncherFactory",
    "NoBook",
    "Output",
    "ProcessBook",
    "Report",
    "SpawnLauncher",
    "WorkerProcess",
    "WorkerSpec",
    "begun_in",
    "marks_file",
    "settled",
]


def __getattr__(name: str) -> Any:
    if name != "Authority":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("snakepit_trio.launch.authority").Authority
