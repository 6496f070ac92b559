"""What the commands share: running on Trio, JSON for people's eyes and for programs, failures in one line."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from snakepit_trio.observe.printable import printable

__all__ = [
    "Signalled",
    "attended",
    "describe",
    "fail",
    "last_words",
    "root",
    "run",
    "start_failure",
    "terminal",
    "to_json",
]

#: Exit codes: something failed; the command line or the start failed. After a signal it is 128 and the signal's number.
FAILED, UNUSABLE = 1, 2
#: How many of a dead worker's lines are shown: the rest of a long one is in the JSON output and in the log.
_LAST_WORDS = 20

_T = TypeVar("_T")


def _show_version(wanted: bool) -> None:
    if wanted:
        from snakepit_trio import __version__

        print(f"snakepit-trio {__version__}")
        raise typer.Exit


def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What stands before a command's name."""


class Signalled(Exception):
    """A signal has ended a command. Its pools are closed."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.code: int = 128 + number


def attended(main: Callable[[], Awaitable[_T]], *, backend: str = "trio") -> _T:
    """What a coroutine returns. SIGINT and SIGTERM cancel it, wherever it is; a second one ends the process as ever.

    Raises:
        Signalled: A signal came. What the coroutine had opened is closed.
        BaseException: What the coroutine raised.
    """
    import anyio

    received: list[int] = []
    result: list[_T] = []

    async def listen(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                received.append(number)
                break
        scope.cancel()

    async def command() -> None:
        async with anyio.create_task_group() as nursery:
            inner = anyio.CancelScope()
            nursery.start_soon(listen, inner)
            with inner:
                result.append(await main())
            nursery.cancel_scope.cancel()

    try:
        anyio.run(command, backend=backend)
    except BaseException as exc:
        from snakepit_trio._interrupts import interrupt_in
        from snakepit_trio.script import only

        error = interrupt_in(exc) or only(exc)
        if isinstance(error, KeyboardInterrupt):
            # Before somebody listened, or the second one.
            received.append(signal.SIGINT)
        elif not received:
            raise error from None
    if received:
        # The process is about to exit, as it was asked to: one Ctrl-C more has nothing to add.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Signalled(received[0])
    return result[0]


def run(
    main: Callable[[], Awaitable[int]],
    on_interrupt: Callable[[], str] = lambda: "",
    *,
    backend: str = "trio",
) -> NoReturn:
    """Run a command's coroutine, on Trio unless it can't, and exit with the code that it returns.

    Ctrl-C and SIGTERM cancel it, close its pools in order, and say so.
    """
    from snakepit_trio.errors import ConfigError, SnakepitError, WorkerStartupError

    try:
        code = attended(main, backend=backend)
    except Signalled as exc:
        fail(on_interrupt() or str(exc), exc.code)
    except (ConfigError, WorkerStartupError) as exc:
        fail(start_failure(exc), UNUSABLE)
    except SnakepitError as exc:
        fail(describe(exc), FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said to them.
        sys.stderr.close()
        code = FAILED
    raise typer.Exit(code)


def fail(message: str, code: int) -> NoReturn:
    """Say why on standard error, and exit."""
    print(f"snakepit: {printable(message)}", file=sys.stderr)
    raise typer.Exit(code)


def start_failure(exc: Any) -> str:
    """Why nothing could be started, for people: the message, and what the worker said."""
    # A SyntaxError's first line begins with blanks that belong to it.
    detail = (exc.details.get("remote_traceback") or exc.details.get("stderr") or "").strip("\n").rstrip()
    return exc.message if detail in exc.message else f"{exc.message}\n{detail}"


def describe(exc: BaseException, *, wrote: bool = True) -> str:
    """A failure for people: its kind, its message, and a tool's traceback or, unless they have been shown, a dead worker's last
    lines."""
    text = f"{getattr(exc, 'code', type(exc).__name__)}: {exc}"
    if trace := getattr(exc, "remote_traceback", ""):
        return f"{text}\n{trace.rstrip()}"
    last = last_words(exc) if wrote else ""
    return f"{text}; the last that it wrote:\n{last}" if last else text


def last_words(exc: BaseException) -> str:
    """The last lines that a worker wrote on standard error before it died under a call."""
    found: str = getattr(exc, "details", {}).get("stderr", "")
    return "\n".join(found.rstrip().splitlines()[-_LAST_WORDS:])


def terminal() -> Any:
    """A console on standard output. What goes into a file or a pipe is not folded, unless ``COLUMNS`` says how wide it is.

    On a terminal with less than 80 columns the lines are the terminal's to fold: tables would be cut beyond recognition.
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 80) if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000
    return console


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text for any result: what JSON has no type for stands as text or a list."""
    from snakepit_trio.observe.printable import json_bytes

    data = json_bytes(value)
    if indent is None:
        return data.decode()
    return json.dumps(json.loads(data), indent=indent, ensure_ascii=False)
