"""Tools for the tests of applications: a pytest plugin, scripted workers, faults on demand, and a check for leaks.

The library itself imports nothing from here. Names are imported on first use, so the plugin adds no cost to a test run.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakepit_trio.testing.faults import Faults as Faults
    from snakepit_trio.testing.leaks import Footprint as Footprint
    from snakepit_trio.testing.leaks import no_leaks as no_leaks
    from snakepit_trio.testing.pools import open_test_pool as open_test_pool
    from snakepit_trio.testing.scripted import ScriptedWorkers as ScriptedWorkers

_WHERE = {
    "Faults": "faults",
    "Footprint": "leaks",
    "ScriptedWorkers": "scripted",
    "no_leaks": "leaks",
    "open_test_pool": "pools",
}

__all__ = ["Faults", "Footprint", "ScriptedWorkers", "no_leaks", "open_test_pool"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
