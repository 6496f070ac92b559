"""How Python processes of this package are started: by which interpreter, under which flags, and what they can import.

A worker finds what its host finds, in the same order, and nothing else: the flags are the host's, the working directory is
not searched (``-P``), and the host's ``sys.path`` travels with the first message. Until that has arrived such a process
knows only where this package is, which is told on its command line: environment variables are not read under ``-E`` and ``-I``.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

from snakepit_trio import _private_names
from snakepit_trio._config_checks import working_directory
from snakepit_trio.errors import ConfigError

if TYPE_CHECKING:
    from .base import WorkerSpec

__all__ = ["import_path", "interpreter_flags", "own_interpreter", "python_command"]

_private_names.require("subprocess")

#: Runs a module of this package as the main one. The package is the one in the directory that is named first, whichever others
#: there are; what it needs of the standard library is imported before, in case that directory has something of the same name.
_RUN = (
    "import runpy, sys, typing; sys.path.insert(0, sys.argv.pop(1)); import snakepit_trio; del sys.path[0]; "
    "runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def own_interpreter() -> str:
    """The interpreter that this process runs in.

    Raises:
        ConfigError: None that could be started: the application is frozen, or embeds Python. Names the option ``python``.
    """
    if getattr(sys, "frozen", False):
        why = "this application is frozen: it would start itself in place of a worker"
    elif not sys.executable:
        why = f"this process does not know its interpreter: sys.executable is {sys.executable!r}"
    else:
        return sys.executable
    expected = "the path of an interpreter that has snakepit_trio installed"
    raise ConfigError(
        f"python: {why}; give the workers one of their own, python={expected!r}",
        details={"source": "code", "key": "python", "expected": expected},
    )


def interpreter_flags() -> tuple[str, ...]:
    """The flags that this interpreter was started with, for others that are to behave alike."""
    if getattr(sys, "frozen", False):
        return ()  # They are the application's, and would keep another interpreter from its own libraries.
    try:
        return tuple(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]
    except ValueError:
        return ()  # The program has changed sys.warnoptions, from which they are made.


def python_command(module: str, spec: WorkerSpec) -> list[str]:
    """The beginning of a command that runs a module of this package, in another interpreter the one that is installed there.

    Raises:
        ConfigError: As from :func:`own_interpreter`.
    """
    flags = [*spec.flags, "-P", "-u"]
    if spec.python is not None:
        return [spec.python, *flags, "-m", module]
    return [own_interpreter(), *flags, "-c", _RUN, _PACKAGE, module]


def import_path(spec: WorkerSpec) -> list[str]:
    """What a worker needs on ``sys.path`` to import what this process can import, in its order.

    Another interpreter has libraries of its own, and gets what is not this one's.

    Raises:
        ConfigError: The working directory is on it, and has been deleted.
    """
    entries = [
        os.path.abspath(entry if os.path.isabs(entry) else os.path.join(working_directory(), entry))
        for entry in sys.path
        if isinstance(entry, str)  # As the import system has it.
    ]
    if spec.python is None:
        return entries
    own = _libraries()
    return [entry for entry in entries if not any(entry == place or entry.startswith(place + os.sep) for place in own)]


def _libraries() -> set[str]:
    """Where this interpreter keeps its own libraries, and those that are installed for it."""
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {*site.getsitepackages(), site.getusersitepackages()} if hasattr(site, "getsitepackages") else set()
    if getattr(sys, "frozen", False):
        found.add(sys.prefix)
    version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return found | {os.path.join(os.path.dirname(place), version) for place in found}
