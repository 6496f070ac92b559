"""The interpreter, flags and import path of Python processes of this package.

A worker finds the modules that its host finds, in the same order: the flags are the host's, the working directory is
not searched (``-P``), and the host's ``sys.path`` travels with the first message. Until then such a process knows only
where this package is, from its command line, because environment variables are not read under ``-E`` and ``-I``.
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

#: Runs a module of this package as the main module. The package comes from the directory that is named first, whatever
#: others exist; the needed parts of the standard library are imported before, in case that directory has modules of the
#: same names.
_RUN = (
    "import runpy, sys, typing; sys.path.insert(0, sys.argv.pop(1)); import snakepit_trio; del sys.path[0]; "
    "runpy.run_module(sys.argv.pop(1), None, '__main__', True)"
)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def own_interpreter() -> str:
    """Return the interpreter that this process runs in.

    Raises:
        ConfigError: There is no interpreter that can be started: the application is frozen, or embeds Python. The error
            names the option ``python``.
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
    """Return the flags with which this interpreter was started, for processes that must behave alike."""
    if getattr(sys, "frozen", False):
        return ()  # These are the application's flags, and would keep another interpreter from its own libraries.
    try:
        return tuple(subprocess._args_from_interpreter_flags())  # type: ignore[attr-defined]
    except ValueError:
        return ()  # The program has changed sys.warnoptions, from which the flags are made.


def python_command(module: str, spec: WorkerSpec) -> list[str]:
    """Return the beginning of a command that runs a module of this package; in another interpreter, of the package
    installed there.

    Raises:
        ConfigError: As from :func:`own_interpreter`.
    """
    flags = [*spec.flags, "-P", "-u"]
    if spec.python is not None:
        return [spec.python, *flags, "-m", module]
    return [own_interpreter(), *flags, "-c", _RUN, _PACKAGE, module]


def import_path(spec: WorkerSpec) -> list[str]:
    """Return the ``sys.path`` entries that a worker needs to import what this process can import, in the same order.

    Another interpreter has its own libraries, and gets the entries that are not this interpreter's.

    Raises:
        ConfigError: The path contains the working directory, which has been deleted.
    """
    entries = [
        os.path.abspath(entry if os.path.isabs(entry) else os.path.join(working_directory(), entry))
        for entry in sys.path
        if isinstance(entry, str)  # As the import system does.
    ]
    if spec.python is None:
        return entries
    own = _libraries()
    return [entry for entry in entries if not any(entry == place or entry.startswith(place + os.sep) for place in own)]


def _libraries() -> set[str]:
    """Return the directories of this interpreter's own and installed libraries."""
    paths = sysconfig.get_paths()
    found = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= {*site.getsitepackages(), site.getusersitepackages()} if hasattr(site, "getsitepackages") else set()
    if getattr(sys, "frozen", False):
        found.add(sys.prefix)
    version = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return found | {os.path.join(os.path.dirname(place), version) for place in found}
