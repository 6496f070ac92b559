"""Finding the running runtimes of this user, for the commands that talk to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from .common import FAILED, fail

__all__ = ["Found", "choose", "find", "look", "own_state_directory"]

#: How long a runtime may take for an answer, in seconds: its event loop may be busy.
_PATIENCE = 5.0


@attrs.frozen
class Found:
    """A run, and what it says of itself.

    Attributes:
        entry: What its lock file says; see :class:`snakepit_trio.supervision.runs.RunEntry`.
        status: Its answer; None when there is none.
        problem: Why there is none.
    """

    entry: Any
    status: dict[str, Any] | None
    problem: str

    @property
    def state(self) -> str:
        """``"running"``, ``"silent"`` (alive without an answer) or ``"stale"`` (its host was killed)."""
        if not self.entry.alive:
            return "stale"
        return "running" if self.status is not None else "silent"


def own_state_directory(state_dir: str | None) -> Path:
    """The state directory. Exits where there is none to be had, or it is somebody else's: nothing in it can be relied on."""
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
    """The state directory and its runs; with ``run``, those whose ids begin so. Looks, and changes nothing."""
    from snakepit_trio.supervision.runs import list_runs

    directory = own_state_directory(state_dir)
    entries = list_runs(directory)
    if run is not None:
        entries = [entry for entry in entries if entry.run_id.startswith(run)]
        if not entries:
            fail(f"there is no run {run!r} in {directory}", FAILED)
    return directory, entries


def choose(state_dir: str | None, run: str | None) -> Any:
    """The one live run that is meant; without ``run`` there must be only one."""
    directory, entries = find(state_dir, run)
    alive = [entry for entry in entries if entry.alive]
    if not alive:
        fail(f"no runtime is running (state directory {directory})", FAILED)
    if len(alive) > 1:
        names = ", ".join(f"{entry.run_id} ({entry.program}, pid {entry.pid})" for entry in alive)
        fail(f"there are {len(alive)} runtimes: {names}; say which with --run", FAILED)
    return alive[0]


async def look(entries: list[Any], *, tree: bool = False) -> list[Found]:
    """Ask each live one for its status, all at once."""
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
