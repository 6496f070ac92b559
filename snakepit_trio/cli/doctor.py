"""``snakepit doctor``: check the machine and the installation."""

from __future__ import annotations

import sys
import tempfile
from typing import Annotated, Any

import typer

from snakepit_trio.observe.printable import printable

from .common import FAILED, Signalled, attended, fail, start_failure, to_json

__all__ = ["doctor"]

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def doctor(
    adapter: Annotated[
        str | None,
        typer.Argument(help="module or module:Class; a worker is started with this adapter as a check."),
    ] = None,
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check Python, packages, system limits, sockets and the state directory, and give advice for each problem.

    Nothing is changed. The exit code is 0 if no check failed (warnings are allowed), and 1 otherwise.
    """
    from .checks import run_checks

    found: list[Any] = []
    for check in run_checks(state_dir):
        found.append(check)
        if not as_json:
            _show(check)
    if adapter is not None:
        found.append(_adapter(adapter))
        if not as_json:
            _show(found[-1])
    failed = sum(check.status == "fail" for check in found)
    warned = sum(check.status == "warn" for check in found)
    if as_json:
        import attrs

        checks = [attrs.asdict(check) for check in found]
        print(to_json({"ok": not failed, "failed": failed, "warnings": warned, "checks": checks}, indent=2))
    else:
        print(f"{len(found)} checks: {failed} failed, {warned} {'warning' if warned == 1 else 'warnings'}")
    sys.stdout.flush()
    raise typer.Exit(FAILED if failed else 0)


def _show(check: Any) -> None:
    print(f"{_MARKS[check.status]}  {check.name}: {printable(check.message)}")
    if check.remedy:
        print(f"      -> {printable(check.remedy)}")


def _adapter(adapter: str) -> Any:
    """Start a worker with the adapter on temporary state."""
    from .checks import FAIL, OK, Check

    async def main() -> Check:
        import snakepit_trio as sp

        with tempfile.TemporaryDirectory(prefix="snakepit-doctor-") as place:
            config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=adapter, size=1)], state_dir=place, control=False)
            async with sp.open_runtime(config) as runtime:
                tools = [spec.name for spec in runtime.pool().tools()]
        return Check("adapter", OK, f"{adapter} comes up with {len(tools)} tools: {', '.join(tools) or 'none'}")

    from snakepit_trio.errors import ConfigError, WorkerStartupError

    try:
        return attended(main)
    except Signalled as exc:
        fail(str(exc), exc.code)
    except ConfigError as exc:
        return Check("adapter", FAIL, exc.message, "name a module that can be imported from here")
    except WorkerStartupError as exc:
        return Check("adapter", FAIL, start_failure(exc), "what the worker says above; PYTHONPATH, or its setup()")
