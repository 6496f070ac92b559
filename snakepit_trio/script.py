"""Script mode: a runtime around one coroutine, signals turned into an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from snakepit_trio._interrupts import interrupt_in
from snakepit_trio.config import PoolConfig, RuntimeConfig
from snakepit_trio.errors import ConfigError, WorkerStartupError
from snakepit_trio.runtime import Runtime, open_runtime
from snakepit_trio.worker.importing import refuse_tower

__all__ = ["only", "run"]

#: As a shell counts a program that SIGPIPE has ended.
_BROKEN_PIPE = 128 + 13


def run(
    main: Callable[[Runtime], Awaitable[Any]], config: RuntimeConfig | PoolConfig | str, *, backend: str = "trio"
) -> int:
    """Script mode: open a runtime, run ``main(runtime)``, close it, and give an exit code for ``sys.exit``.

    SIGINT and SIGTERM cancel ``main`` and close the runtime in order: what the bridge's clients have under way may end
    within ``stop_grace``. A second one ends the workers at once. In any thread but the main one no signals are handled.

    Returns:
        What ``main`` returned when that is an int from 0 to 255, 0 for anything else; 1 when it raised (the traceback is
        printed), 2 for a configuration that is refused, 130 after SIGINT, 143 after SIGTERM (128 plus the signal's
        number, as shells count). After a signal the process is expected to exit: SIGINT is ignored from then on.
    """
    if isinstance(config, str):
        try:
            config = PoolConfig(adapter=config)
        except ConfigError as exc:
            print(f"snakepit: {exc}", file=sys.stderr)  # noqa: T201
            return 2
    if isinstance(config, PoolConfig):
        config = RuntimeConfig(pools=[config])
    # Not as the exit code of a program that this is not.
    refuse_tower(config)
    whole = config
    # Python gives signals to no other; elsewhere they are for whoever runs the thread to handle.
    in_main_thread = threading.current_thread() is threading.main_thread()
    received: list[int] = []
    opened: list[Runtime] = []
    result: Any = None

    async def listen(opening: anyio.CancelScope, body: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                received.append(number)
                body.cancel()
                if not opened or len(received) > 1:
                    # Nothing runs yet; or asked twice, nobody waits for calls to end or workers to stop any more.
                    opening.cancel()
                    for runtime in opened:
                        runtime.kill()

    async def script() -> None:
        nonlocal result
        async with anyio.create_task_group() as nursery:
            opening, body = anyio.CancelScope(), anyio.CancelScope()
            if in_main_thread:
                nursery.start_soon(listen, opening, body)
            with opening:
                async with open_runtime(whole) as runtime:
                    opened.append(runtime)
                    # A signal ends the body alone: the block below it ends in good order, and what others have under
                    # way (the bridge's clients) may end within stop_grace.
                    with body:
                        result = await main(runtime)
            nursery.cancel_scope.cancel()

    code = 0
    try:
        anyio.run(script, backend=backend)
    except BaseException as exc:
        error = interrupt_in(exc) or only(exc)
        if isinstance(error, SystemExit):
            # As the interpreter does: nothing is success, and text is a last word.
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if error.code is not None and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)  # noqa: T201
        elif isinstance(error, ConfigError | WorkerStartupError):
            print(f"snakepit: {error}", file=sys.stderr)  # noqa: T201
            code = 2
        elif isinstance(error, KeyboardInterrupt):
            # A Ctrl-C before the receiver was there, or one more while it was being closed.
            received.append(signal.SIGINT)
        elif isinstance(error, BrokenPipeError):
            code = _BROKEN_PIPE
        elif isinstance(error, Exception):
            traceback.print_exception(error)
            code = 1
        else:
            raise
    if received and in_main_thread:
        # The process is about to exit, as it was asked to: one Ctrl-C more has nothing to add.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for runtime in opened:
        for pool, workers in runtime.killed.items():
            print(f"snakepit: pool {pool}: had to kill {', '.join(workers)}", file=sys.stderr)  # noqa: T201
    if received:
        return _flushed(128 + received[0])
    if code == 0 and type(result) is int and 0 <= result <= 255:
        code = result
    return _flushed(code)


def only(exc: BaseException) -> BaseException:
    """The exception inside a group of one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _flushed(code: int) -> int:
    """A reader that has gone away must not hang or break the exit."""
    try:
        if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
            sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again, and loudly, when the interpreter ends.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        return code or _BROKEN_PIPE
    return code
