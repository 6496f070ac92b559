"""``snakepit top``: show a running runtime on an updating screen."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import UNUSABLE, fail
from .status import status

__all__ = ["top"]


def top(
    run_id: Annotated[str | None, typer.Option("--run", help="The run's id, or the beginning of it.")] = None,
    interval: Annotated[float, typer.Option(help="Seconds between two updates.", min=0.1)] = 1.0,
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot, as `status --json` does.")] = False,
) -> None:
    """Watch a runtime: its pools, workers, queue, latencies and events. Keys drain, restart or kill a worker.

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
