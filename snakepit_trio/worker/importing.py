"""The import of an adapter and its ``setup``, during which workers must not start workers of the same adapter.

A program that is its own adapter, without ``if __name__ == "__main__"``, would do in each worker what it does in its
host: open a pool, whose workers open pools.
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


#: The modules that this process is importing, and the one whose setup is running.
_importing: list[str] = []
_setting_up: list[str] = []
#: Why a module can't be an adapter. A worker forked after the attempt does not try again.
_refused: dict[str, ConfigError] = {}


def import_adapter(name: str) -> ModuleType:
    """Import an adapter's module.

    Raises:
        ConfigError: The import opened a runtime, even if the module has caught the refusal.
        Exception: Any exception of the import.
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
    """Mark the module's adapter as being set up during the block."""
    _setting_up.append(name)
    try:
        yield
    finally:
        _setting_up.pop()


def refuse_tower(config: _Config) -> None:
    """Refuse a runtime that a worker opens at its start with its own adapter.

    Raises:
        ConfigError: Each worker of the runtime would open another one, without end.
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
