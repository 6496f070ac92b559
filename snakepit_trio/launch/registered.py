"""Launchers by name: the local one, and those that distributions register in the entry-point group."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn, cast

from snakepit_trio._config_checks import refuse
from snakepit_trio._exceptions import text_of
from snakepit_trio.errors import ConfigError, SnakepitError

from .base import LaunchContext, Launcher, LauncherFactory, is_launcher, lacks

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "LOCAL", "check_launcher", "make_launcher"]

#: The entry-point group. Each entry names a :data:`~snakepit_trio.launch.base.LauncherFactory`.
GROUP = "snakepit_trio.launchers"
#: The name of this machine's launchers.
LOCAL = "local"


def check_launcher(value: object) -> None:
    """Check the ``launcher`` option. An entry point is looked up but not loaded yet.

    Raises:
        ConfigError: There is no launcher of this name, or there are two; or the object is not a launcher, and the error
            says what it lacks.
    """
    if isinstance(value, str):
        if value != LOCAL:
            _entry(value)
        return
    if is_launcher(value):
        return
    missing = lacks(value)
    if callable(value) and not (missing and isinstance(value, type)):
        try:
            inspect.signature(value).bind("context")
        except TypeError:
            refuse("launcher", value, "what can be called with a LaunchContext alone")
        except ValueError:
            # Its parameters are unknown.
            pass
    else:
        refuse("launcher", value, f"a name, or a Launcher, or a class or function that makes one; this lacks {missing}")


def make_launcher(name: str, context: LaunchContext) -> Launcher:
    """Create a launcher from an entry point.

    Raises:
        ConfigError: The entry point can't be imported or called, or fails; the error names the distribution and the
            reason.
    """
    entry = _entry(name)
    try:
        found = entry.load()
    except (Exception, SystemExit) as exc:
        if isinstance(exc, ImportError) and entry.extras:
            _fail(f"{_distribution(entry)}[{','.join(entry.extras)}] to be installed", text_of(exc), exc)
        reason = f"{type(exc).__name__}: {text_of(exc)}"
        _fail(f"{name!r} of {_release(entry)} to be importable ({entry.value})", reason, exc)
    if not callable(found):
        reason = f"{entry.value} is of type {type(found).__name__}"
        _fail(f"{name!r} of {_release(entry)} to be a class or a function", reason)
    try:
        return cast("LauncherFactory", found)(context)
    except SnakepitError:
        raise
    except Exception as exc:
        _fail(f"{name!r} of {_release(entry)} to make a launcher", f"{type(exc).__name__}: {text_of(exc)}", exc)


def _entry(name: str) -> EntryPoint:
    found = _entries()
    if name not in found:
        names = sorted({LOCAL, *found})
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        refuse("launcher", name, f"{' or '.join(map(repr, names))}{hint}")
    first, *others = found[name]
    if others:
        refuse("launcher", name, f"a name that one distribution has registered, not {_all(found[name])}")
    return first


def _entries() -> Mapping[str, list[EntryPoint]]:
    # Imported here, because it costs an import and a look at each distribution.
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    found.pop(LOCAL, None)
    return found


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def _release(entry: EntryPoint) -> str:
    return f"{_distribution(entry)} {entry.dist.version}" if entry.dist is not None else _distribution(entry)


def _all(entries: list[EntryPoint]) -> str:
    return " and ".join(sorted(_release(entry) for entry in entries))


def _fail(expected: str, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise ConfigError(
        f"launcher: expected {expected}: {reason}", details={"source": "code", "key": "launcher", "expected": expected}
    ) from cause
