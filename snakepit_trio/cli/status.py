"""``snakepit status``: show the runtimes of this user."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from .common import run, terminal, to_json
from .words import cell, duration, size

__all__ = ["count", "ready_of", "state_of", "status"]


def status(
    tree: Annotated[bool, typer.Option("--tree", help="Show nurseries, workers and requests as a tree.")] = False,
    run_id: Annotated[
        str | None, typer.Option("--run", help="Show only this run: its id, or the beginning of it.")
    ] = None,
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every running runtime of this user: its pools, workers and requests.

    Nothing is changed. A stale run is one whose host was killed; the next run, or "snakepit cleanup", removes what is left of it.
    """
    from .runs import find, look

    directory, entries = find(state_dir, run_id)

    async def main() -> int:
        found = await look(entries, tree=tree)
        if as_json:
            print(to_json({"state_dir": str(directory), "runs": [_plain(one) for one in found]}, indent=2))
            return 0
        if not found:
            print(f"no runtime is running (state directory {directory})")

        console = terminal()
        for number, one in enumerate(found):
            if number:
                console.print()
            if one.status is None:
                console.print(_without_answer(one))
            elif tree:
                console.print(_tree(one.status))
            else:
                _show(console, one.status)
        return 0

    run(main)


def _plain(found: Any) -> dict[str, Any]:
    import attrs

    return {**attrs.asdict(found.entry), "state": found.state, "problem": found.problem, "status": found.status}


def _without_answer(found: Any) -> str:
    entry = found.entry
    since = f", begun {duration(time.time() - entry.started)} ago" if entry.started else ""
    who = f"run {entry.run_id}: {cell(entry.program) or 'unknown program'}, pid {entry.pid or '?'}{since}"
    if found.state == "stale":
        return f"{who}: stale, its host was killed; `snakepit cleanup` clears it away"
    return f"{who}: alive, but {cell(found.problem)}"


def _title(status: dict[str, Any]) -> str:
    versions = status["versions"]
    return (
        f"run {status['run_id']}: {cell(status['program']) or 'python'}, pid {status['pid']}, up {duration(status['uptime'])}, "
        f"Python {versions['python']} on {status['backend']}, snakepit_trio {versions['snakepit_trio']}, "
        f"{size(status['rss'])}, {count(status['sessions'], 'session')}"
    )


def count(number: int | None, what: str) -> str:
    """Return a number with its noun: ``"1 session"``, ``"2 sessions"``."""
    return f"? {what}s" if number is None else f"{number} {what}{'' if number == 1 else 's'}"


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for column in columns:
        # Names wrap if there is little room; wrapped numbers, ids and headings would be unreadable.
        folds = column.startswith("~")
        table.add_column(
            column.lstrip(">~"), justify="right" if column.startswith(">") else "left", overflow="fold" if folds else "ellipsis",
            no_wrap=not folds,
        )  # fmt: skip
    return table


def _show(console: Any, status: dict[str, Any]) -> None:
    console.print(_title(status))
    pools = _table(
        "~pool", "~adapter", ">ready", ">queued", ">running", ">done", ">failed", ">restarts", ">p50", ">p95"
    )
    workers = _table("worker", "~pool", ">slot", "state", ">pid", ">calls", ">done", ">memory", ">heartbeat", "~")
    requests = _table("request", "~pool", "~tool", "phase", ">age", "worker")
    now = time.time()
    for pool in status["pools"]:
        stats, latency = pool["stats"], pool["latency"]
        failed = stats["failed"] + stats["timed_out"]
        pools.add_row(
            cell(pool["name"]), cell(pool["adapter"]), ready_of(stats),
            str(stats["queued"]), str(stats["in_flight"]), str(stats["completed"]), str(failed), str(stats["restarts"]),
            duration(latency["p50"]), duration(latency["p95"]),
        )  # fmt: skip
        for worker in pool["workers"]:
            beat = worker["last_heartbeat"]
            workers.add_row(
                cell(worker["id"]), cell(pool["name"]), str(worker["slot"]), state_of(worker), str(worker["pid"] or "-"),
                str(worker["in_flight"]), str(worker["requests"]), size(worker["rss"] or None),
                "-" if beat is None else duration(max(0.0, now - beat)), cell(worker["reason"]),
            )  # fmt: skip
        for request in pool["requests"]:
            requests.add_row(
                cell(request["request_id"]), cell(pool["name"]), cell(request["tool"]), cell(request["phase"]),
                duration(request["age"]), cell(request["worker_id"]),
            )  # fmt: skip
    for table in (pools, workers, requests):
        if table.row_count:
            console.print()
            console.print(table)


def ready_of(stats: dict[str, Any], of: str = "/") -> str:
    """How many of a pool's workers take calls, and how many somebody keeps from it."""
    # A runtime of another version may not say it.
    cordoned = stats.get("cordoned", 0)
    return f"{stats['ready']}{of}{stats['size']}" + (f" ({cordoned} cordoned)" if cordoned else "")


def state_of(worker: dict[str, Any]) -> str:
    """Return a worker's state as text, with its fault if there is one."""
    return cell(worker["state"]) + (", tainted" if worker["tainted"] else "")


def _tree(status: dict[str, Any]) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(_title(status)))
    for pool in status["pools"]:
        stats = pool["stats"]
        branch = root.add(Text(f"pool {cell(pool['name'])} ({cell(pool['adapter'])}): {ready_of(stats, ' of ')} ready"))
        requests = list(pool["requests"])
        for worker in pool["workers"]:
            where = f"slot {worker['slot']}, " if worker["slot"] >= 0 else ""
            why = f", {cell(worker['reason'])}" if worker["reason"] else ""
            leaf = branch.add(
                Text(f"worker {cell(worker['id'])}: {where}pid {worker['pid'] or '-'}, {state_of(worker)}{why}")
            )
            for request in requests:
                if request["worker_id"] == worker["id"] and request["phase"] == "running":
                    leaf.add(Text(_request(request)))
        waiting = [request for request in requests if request["phase"] != "running"]
        if waiting:
            queue = branch.add(Text(f"queue: {stats['queued']} waiting"))
            for request in waiting:
                queue.add(Text(_request(request)))
    tasks = status.get("tasks")
    if tasks:
        _add_tasks(root.add(Text(f"nurseries: {len(tasks)} tasks")), tasks)
    return root


def _request(request: dict[str, Any]) -> str:
    words = f"request {cell(request['request_id'])}: {cell(request['tool'])}, {duration(request['age'])} old"
    if request["running_for"] is not None:
        words += f", running for {duration(request['running_for'])}"
    if request["time_left"] is not None:
        words += f", {duration(request['time_left'])} left"
    if request["attempt"] > 1:
        words += f", attempt {request['attempt']}"
    return words + (f", session {cell(request['session_id'])}" if request["session_id"] else "")


def _add_tasks(branch: Any, tasks: list[dict[str, Any]]) -> None:
    from rich.text import Text

    known = {task["id"] for task in tasks}
    children: dict[int | None, list[dict[str, Any]]] = {}
    for task in tasks:
        children.setdefault(task["parent"] if task["parent"] in known else None, []).append(task)

    def add(to: Any, parent: int | None) -> None:
        for task in sorted(children.get(parent, ()), key=lambda task: (task["name"], task["id"])):
            add(to.add(Text(cell(task["name"]).removeprefix("snakepit_trio."))), task["id"])

    add(branch, None)
