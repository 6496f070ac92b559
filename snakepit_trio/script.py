"""Script mode: run one coroutine function in a runtime, handle signals, and return an exit code."""

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

#: The exit code that a shell reports for a program ended by SIGPIPE.
_BROKEN_PIPE = 128 + 13


def run(
    main: Callable[[Runtime], Awaitable[Any]], config: RuntimeConfig | PoolConfig | str, *, backend: str = "trio"
) -> int:
    """Open a runtime, run ``main(runtime)``, close the runtime, and return an exit code for ``sys.exit``.

    SIGINT and SIGTERM cancel ``main`` and close the runtime in order: calls of the bridge's clients have ``stop_grace`` seconds
    to end. A second signal kills the workers at once. Outside the main thread no signals are handled.

    Returns:
        The result of ``main`` if it is an int from 0 to 255, else 0; 1 if ``main`` raised (the traceback is printed), 2
        for an invalid configuration or a pool that could not start, 130 after SIGINT, 143 after SIGTERM (128 plus the
        signal's number, as in a shell). After a signal the process is expected to exit, and SIGINT is ignored.
    """
    if isinstance(config, str):
        try:
            config = PoolConfig(adapter=config)
        except ConfigError as exc:
            print(f"snakepit: {exc}", file=sys.stderr)  # noqa: T201
            return 2
    if isinstance(config, PoolConfig):
        config = RuntimeConfig(pools=[config])
    # Raised as ConfigError rather than turned into an exit code: this process is a worker, not the program.
    refuse_tower(config)
    whole = config
    # Python delivers signals to the main thread only; in another thread they are the application's to handle.
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
                    # The runtime is still opening, or this is the second signal: do not wait for calls or workers.
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
                    # A signal cancels only the body. The runtime's block then ends normally, so calls of the bridge's
                    # clients have stop_grace seconds to end.
                    with body:
                        result = await main(runtime)
            nursery.cancel_scope.cancel()

    code = 0
    try:
        anyio.run(script, backend=backend)
    except BaseException as exc:
        error = interrupt_in(exc) or only(exc)
        if isinstance(error, SystemExit):
            # As the interpreter does: None is success, and a string is printed.
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if error.code is not None and not isinstance(error.code, int):
                print(error.code, file=sys.stderr)  # noqa: T201
        elif isinstance(error, ConfigError | WorkerStartupError):
            print(f"snakepit: {error}", file=sys.stderr)  # noqa: T201
            code = 2
        elif isinstance(error, KeyboardInterrupt):
            # A Ctrl-C before the signal receiver was open, or another one while it was being closed.
            received.append(signal.SIGINT)
        elif isinstance(error, BrokenPipeError):
            code = _BROKEN_PIPE
        elif isinstance(error, Exception):
            traceback.print_exception(error)
            code = 1
        else:
            raise
    if received and in_main_thread:
        # The process is about to exit; another Ctrl-C must not interrupt that.
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
    """Return the exception inside nested groups of one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


def _flushed(code: int) -> int:
    """Flush standard output and return the exit code; a reader that has gone away neither blocks nor breaks the exit."""
    try:
        if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
            sys.stdout.flush()
    except BrokenPipeError:
        # The rest of the buffer would fail again, with a traceback, when the interpreter ends.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        return code or _BROKEN_PIPE
    return code
