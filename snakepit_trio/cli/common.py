"""What the commands share: running on Trio, JSON for people's eyes and for programs, failures in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import typer

from snakepit_trio.observe.printable import printable

__all__ = ["INTERRUPTED", "describe", "fail", "run", "to_json"]

#: Exit codes: something failed; the command line or the start failed; Ctrl-C (128 + SIGINT).
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


def run(
    main: Callable[[], Awaitable[int]],
    on_interrupt: Callable[[], str] = lambda: "interrupted",
    *,
    backend: str = "trio",
) -> NoReturn:
    """Run a command's coroutine, on Trio unless it can't, and exit with the code that it returns.

    Ctrl-C cancels it, closes its pools in order, and says so.
    """
    import anyio

    from snakepit_trio.errors import ConfigError, SnakepitError, WorkerStartupError

    try:
        code = anyio.run(main, backend=backend)
    except KeyboardInterrupt:
        fail(on_interrupt(), INTERRUPTED)
    except (ConfigError, WorkerStartupError) as exc:
        detail = exc.details.get("remote_traceback") or exc.details.get("stderr") or ""
        fail(f"{exc.message}\n{detail}".strip(), UNUSABLE)
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


def describe(exc: BaseException) -> str:
    """A failure for people: its kind, its message, and a tool's traceback."""
    text = f"{getattr(exc, 'code', type(exc).__name__)}: {exc}"
    trace = getattr(exc, "remote_traceback", "")
    return f"{text}\n{trace.rstrip()}" if trace else text


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text for any result: what JSON has no type for stands as text or a list."""
    import msgspec

    from snakepit_trio.observe.printable import to_plain

    data = msgspec.json.encode(value, enc_hook=to_plain)
    if indent is None:
        return data.decode()
    return json.dumps(json.loads(data), indent=indent, ensure_ascii=False)
