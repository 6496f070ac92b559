"""Helpers of the commands: running on Trio, JSON output for people and programs, one-line errors."""

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

#: Exit codes: an operation failed; the command line or the start is invalid. After a signal: 128 plus the signal's number.
FAILED, UNUSABLE = 1, 2
#: The number of a dead worker's last lines that are shown; the JSON output and the log have all of them.
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
    """Handle the options before a command's name."""


class Signalled(Exception):
    """A signal ended the command; its pools are closed."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted" if number == signal.SIGINT else "terminated")
        self.code: int = 128 + number


def attended(main: Callable[[], Awaitable[_T]], *, backend: str = "trio") -> _T:
    """Run a coroutine and return its result. SIGINT and SIGTERM cancel it; a second signal ends the process as usual.

    Raises:
        Signalled: A signal arrived. Everything that the coroutine had opened is closed.
        BaseException: An exception of the coroutine.
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
            # A Ctrl-C before the signal receiver was open, or a second one.
            received.append(signal.SIGINT)
        elif not received:
            raise error from None
    if received:
        # The process is about to exit; another Ctrl-C must not interrupt that.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Signalled(received[0])
    return result[0]


def run(
    main: Callable[[], Awaitable[int]],
    on_interrupt: Callable[[], str] = lambda: "",
    *,
    backend: str = "trio",
) -> NoReturn:
    """Run a command's coroutine on the backend, and exit with the code that it returns.

    Ctrl-C and SIGTERM cancel the coroutine, close its pools in order, and print a message.
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
        # The reader of the output has gone, so no message can reach it.
        sys.stderr.close()
        code = FAILED
    raise typer.Exit(code)


def fail(message: str, code: int) -> NoReturn:
    """Print an error on standard error, and exit."""
    print(f"snakepit: {printable(message)}", file=sys.stderr)
    raise typer.Exit(code)


def start_failure(exc: Any) -> str:
    """Return the text of a failed start: the message, and the worker's traceback or last output."""
    # The first line of a SyntaxError's text begins with significant blanks.
    detail = (exc.details.get("remote_traceback") or exc.details.get("stderr") or "").strip("\n").rstrip()
    return exc.message if detail in exc.message else f"{exc.message}\n{detail}"


def describe(exc: BaseException, *, wrote: bool = True) -> str:
    """Return the text of an error: its class, its message, and the tool's traceback or the dead worker's last lines.

    Args:
        exc: The error.
        wrote: Whether to include the worker's last lines; False if they have been shown.
    """
    text = f"{getattr(exc, 'code', type(exc).__name__)}: {exc}"
    if trace := getattr(exc, "remote_traceback", ""):
        return f"{text}\n{trace.rstrip()}"
    last = last_words(exc) if wrote else ""
    return f"{text}; the last that it wrote:\n{last}" if last else text


def last_words(exc: BaseException) -> str:
    """Return the last lines that a worker wrote on standard error before it died during a call."""
    found: str = getattr(exc, "details", {}).get("stderr", "")
    return "\n".join(found.rstrip().splitlines()[-_LAST_WORDS:])


def terminal() -> Any:
    """Return a console on standard output. Output to a file or pipe is not wrapped, unless ``COLUMNS`` sets a width.

    On a terminal with less than 80 columns the terminal wraps the lines, because tables would be cut too much.
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    console.width = max(console.width, 80) if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000
    return console


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return any result as JSON; a value without a JSON type becomes text or a list."""
    from snakepit_trio.observe.printable import json_bytes

    data = json_bytes(value)
    if indent is None:
        return data.decode()
    return json.dumps(json.loads(data), indent=indent, ensure_ascii=False)
