"""Find the running runtimes of this user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from .common import FAILED, fail

__all__ = ["Found", "choose", "find", "look", "own_state_directory"]

#: Seconds. The time that a runtime may take to answer; its event loop may be busy.
_PATIENCE = 5.0


@attrs.frozen
class Found:
    """A run, and its answer.

    Attributes:
        entry: The content of its lock file; see :class:`snakepit_trio.supervision.runs.RunEntry`.
        status: The runtime's status; None if it did not answer.
        problem: The reason for a missing answer.
    """

    entry: Any
    status: dict[str, Any] | None
    problem: str

    @property
    def state(self) -> str:
        """``"running"``, ``"silent"`` (alive, no answer) or ``"stale"`` (its host was killed)."""
        if not self.entry.alive:
            return "stale"
        return "running" if self.status is not None else "silent"


def own_state_directory(state_dir: str | None) -> Path:
    """Return the state directory. Exits if there is none, or if it belongs to another user and can't be trusted."""
    from snakepit_trio.errors import ConfigError
    from snakepit_trio.supervision.state_directory import find_fault, state_directory

    try:
        directory = state_directory(state_dir)
    except ConfigError as exc:
        fail(exc.message, FAILED)
    fault = find_fault(directory)
    if fault is not None:
        fail(f"the state directory {directory} can't be used: {fault}", FAILED)
    return directory


def find(state_dir: str | None, run: str | None = None) -> tuple[Path, list[Any]]:
    """Return the state directory and its runs, or those whose ids begin with ``run``. Changes nothing."""
    from snakepit_trio.supervision.runs import list_runs

    directory = own_state_directory(state_dir)
    entries = list_runs(directory)
    if run is not None:
        entries = [entry for entry in entries if entry.run_id.startswith(run)]
        if not entries:
            fail(f"there is no run {run!r} in {directory}", FAILED)
    return directory, entries


def choose(state_dir: str | None, run: str | None) -> Any:
    """Return the one live run whose id begins with ``run``; without ``run`` exactly one run must be alive."""
    directory, entries = find(state_dir, run)
    alive = [entry for entry in entries if entry.alive]
    if not alive:
        fail(f"no runtime is running (state directory {directory})", FAILED)
    if len(alive) > 1:
        names = ", ".join(f"{entry.run_id} ({entry.program}, pid {entry.pid})" for entry in alive)
        fail(f"there are {len(alive)} runtimes: {names}; choose one with --run", FAILED)
    return alive[0]


async def look(entries: list[Any], *, tree: bool = False) -> list[Found]:
    """Ask all live runs for their status, concurrently."""
    import anyio

    found: dict[str, Found] = {}

    async def one(entry: Any) -> None:
        from snakepit_trio.control.client import connect
        from snakepit_trio.errors import SnakepitError

        try:
            async with connect(entry.control) as client:
                found[entry.run_id] = Found(entry, await client.ask("status", timeout=_PATIENCE, tree=tree), "")
        except SnakepitError as exc:
            found[entry.run_id] = Found(entry, None, exc.message)

    async with anyio.create_task_group() as nursery:
        for entry in entries:
            if entry.alive:
                nursery.start_soon(one, entry)
            else:
                found[entry.run_id] = Found(entry, None, "its host is gone")
    return [found[entry.run_id] for entry in entries]
