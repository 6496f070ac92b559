"""``snakepit top``: a running runtime on a screen that keeps up with it."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import UNUSABLE, fail
from .status import status

__all__ = ["top"]


def top(
    run_id: Annotated[str | None, typer.Option("--run", help="Which run; the beginning of its id will do.")] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    state_dir: Annotated[str | None, typer.Option(help="Where runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One look, as `status --json` prints it.")] = False,
) -> None:
    """Watch a runtime: its pools, workers, queue, latencies and events; drain, restart or kill a worker by a key.

    The screen needs the extra "top": pip install "snakepit-trio[top]".
    """
    from .runs import choose

    entry = choose(state_dir, run_id)
    if as_json:
        status(run_id=entry.run_id, state_dir=state_dir, as_json=True)
        return
    try:
        from .screen import Screen
    except ImportError as exc:
        fail(f'this needs an extra: pip install "snakepit-trio[top]" ({exc})', UNUSABLE)
    code = Screen(entry.control, interval=interval).run()
    raise typer.Exit(code or 0)
