"""The beginning of an adapter: its import and its ``setup``, in which workers may not start workers like themselves.

A program that is its own adapter, and has no ``if __name__ == "__main__"``, would do in each worker what it does in its host:
open a pool, whose workers open pools.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

from snakepit_trio import _forks
from snakepit_trio.errors import ConfigError

__all__ = ["being_set_up", "import_adapter", "refuse_tower"]


class _Pool(Protocol):
    @property
    def adapter(self) -> str | None: ...


class _Config(Protocol):
    @property
    def pools(self) -> Sequence[_Pool]: ...


#: The modules whose import is under way in this process, and the one whose setup is.
_importing: list[str] = []
_setting_up: list[str] = []
#: Why a module is no adapter. A worker that was forked after the attempt does not try again.
_refused: dict[str, ConfigError] = {}


def import_adapter(name: str) -> ModuleType:
    """Import an adapter's module.

    Raises:
        ConfigError: The import opened a runtime, whatever the module made of the refusal.
        Exception: Whatever the import raises.
    """
    if name not in _refused:
        _importing.append(name)
        try:
            with _forks.contained():
                module = importlib.import_module(name)
        except (Exception, SystemExit):
            if name not in _refused:
                raise
        finally:
            _importing.pop()
    if name in _refused:
        raise _refused[name]
    return module


@contextmanager
def being_set_up(name: str) -> Iterator[None]:
    """The module's adapter is being set up in this block."""
    _setting_up.append(name)
    try:
        yield
    finally:
        _setting_up.pop()


def refuse_tower(config: _Config) -> None:
    """Such a runtime is about to be opened in this process.

    Raises:
        ConfigError: It would never end: this process is a worker at its beginning, and each of its workers would do the same.
    """
    if _importing:
        name = _importing[-1]
        _refused[name] = ConfigError(
            f"the import of the adapter {name!r} opens a pool, and would do so in each worker, without end: what a program "
            'does when it is run belongs under `if __name__ == "__main__":`, where an import does not come',
            details={"source": "code", "key": "adapter", "expected": "a module whose import opens no pool"},
        )
        raise _refused[name]
    for name in _setting_up:
        if any((pool.adapter or "").partition(":")[0] == name for pool in config.pools):
            raise ConfigError(
                f"the setup of the adapter {name!r} opens a pool of that adapter, whose workers would do the same, without end",
                details={"source": "code", "key": "adapter", "expected": "another adapter than the one that is set up"},
            )
