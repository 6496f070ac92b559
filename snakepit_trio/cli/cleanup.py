"""``snakepit cleanup``: remove what killed runs have left."""

from __future__ import annotations

import json
import sqlite3
from typing import Annotated

import typer

from snakepit_trio.errors import ConfigError

from .common import FAILED, fail
from .runs import own_state_directory

__all__ = ["cleanup"]


def cleanup(
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """End the processes and remove the files of runs whose hosts were killed. Live runs are not touched.

    Every run does the same when it starts.
    """
    import attrs

    from snakepit_trio.supervision.leftovers import clear, look

    directory = own_state_directory(state_dir)
    try:
        swept = look(directory) if dry_run else clear(directory)
    except ConfigError as exc:
        fail(exc.message, FAILED)
    except (OSError, sqlite3.Error) as exc:
        fail(f"the state directory {directory} can't be used: {exc}", FAILED)
    if as_json:
        print(
            json.dumps({"state_dir": str(directory), "dry_run": dry_run, "runs": [attrs.asdict(run) for run in swept]})
        )
        return
    if not swept:
        print(f"nothing was left behind (state directory {directory})")
        return
    verb = "would end" if dry_run else "ended"
    for run in swept:
        processes = f"{verb} process {', '.join(map(str, run.pids))}" if run.pids else "no process was alive"
        print(f"run {run.run_id}: {processes}; directory {run.run_dir or 'gone already'}")
