"""Ctrl-C must not strike in the middle of the books.

Trio raises KeyboardInterrupt wherever the main thread happens to be, unless the code there is protected; the interrupt then
waits for the main task's next checkpoint. The library's own tasks, and whatever changes shared state in its callers' tasks, are
protected. See https://trio.readthedocs.io/en/stable/reference-lowlevel.html#low-level-blocking and
``trio.lowlevel.enable_ki_protection``. asyncio's runner needs none of this: it cancels the main task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

__all__ = ["protected"]

_F = TypeVar("_F", bound=Callable[..., object])


def protected(function: _F) -> _F:
    """Mark a function: no KeyboardInterrupt is raised inside it, or in what it calls."""
    return trio.lowlevel.enable_ki_protection(function)
