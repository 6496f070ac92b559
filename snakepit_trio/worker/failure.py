"""A worker that meets an exception which its own code did not expect ends: its host settles its calls, and starts another.

What a tool raises is that call's failure, and never comes here. Whatever else is raised in one of the worker's threads, or in
a callback of one of its event loops, would end that thread or callback alone, and somebody would wait for it for ever.
"""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from .lifeline import end_children

__all__ = ["EXIT_INTERNAL", "EXIT_STUCK", "fatal", "of_loop", "run", "task", "tell"]

#: Exit code of a worker whose host is gone while a tool can't be stopped.
EXIT_STUCK = 70
#: Exit code of a worker that has met an exception of its own code.
EXIT_INTERNAL = 71


def tell(exc: BaseException, ended: str) -> None:
    """Print a traceback on standard error, which the host logs.

    Args:
        ended: What ends by it, in words.
    """
    sys.stderr.write(f"an internal error of snakepit_trio ends this {ended}:\n")
    traceback.print_exception(exc)
    sys.stderr.flush()


def fatal(exc: BaseException) -> NoReturn:
    """End this process at once, with a traceback on its standard error, which its host logs."""
    try:
        tell(exc, "worker")
    finally:
        try:
            end_children()
        finally:
            os._exit(EXIT_INTERNAL)


def run(function: Callable[..., object], *args: Any) -> None:
    """Run what is the worker's own, in one of its threads or in a callback of the tools' loop; an exception ends the worker."""
    try:
        function(*args)
    except Exception as exc:
        fatal(exc)


async def task(function: Callable[..., Awaitable[object]], *args: Any) -> None:
    """The same for a task in the tools' loop."""
    try:
        await function(*args)
    except Exception as exc:
        fatal(exc)


def of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's exception handler for a loop that runs nothing but the worker's own code."""
    exc = context.get("exception")
    # A connection that fails is told of elsewhere, to whoever has it, and what a future holds may be of no use by now.
    ours = "handle" in context or isinstance(context.get("future"), asyncio.Task)
    if ours and isinstance(exc, Exception) and not isinstance(exc, OSError):
        fatal(exc)
    loop.default_exception_handler(context)
