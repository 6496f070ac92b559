"""``snakepit demo``: measure real input, with a worker killed half-way."""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import FAILED, run, to_json
from .progress import ProgressBar

_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


def demo(
    size: Annotated[
        int | None, typer.Option(help="The number of workers; by default one per core, and at least 2.", min=1)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Measure at most this number of modules.", min=1)] = None,
    kill: Annotated[bool, typer.Option(help="Kill a worker half-way.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure every module of this interpreter's standard library, and survive the loss of a worker."""
    from snakepit_trio.config import PoolConfig

    workers = size or max(2, PoolConfig(adapter="x").size)
    sys.path.insert(0, _examples())
    modules = _standard_library()[:limit]
    found: dict[str, Any] = {"modules": 0, "errors": []}

    async def main() -> int:
        import snakepit_trio as sp

        rows: list[dict[str, Any]] = []
        killed: dict[str, Any] = {}
        begun = time.perf_counter()
        async with sp.open_pool("code_metrics", size=workers) as pool:
            opened = time.perf_counter()
            async with pool.runtime.events.subscribe("request.dispatched", "worker.ready") as events:
                with ProgressBar(False if as_json else None, len(modules), title="measuring", unit="modules") as bar:
                    async with pool.map(
                        "measure", ({"path": str(path)} for path in modules), ordered=False, return_errors=True
                    ) as results:
                        async for result in results:
                            if isinstance(result, sp.SnakepitError):
                                found["errors"].append({"path": str(modules[results.index]), "message": result.message})
                            else:
                                rows.append(result)
                            done = len(rows) + len(found["errors"])
                            bar.update(done)
                            if kill and not killed and done >= len(modules) // 2:
                                victim = next((w for w in pool.workers() if w.state == "busy"), None)
                                if victim is not None and victim.pid is not None:
                                    killed.update(worker=victim.id, pid=victim.pid, at=time.time(), after=done)
                                    os.kill(victim.pid, signal.SIGKILL)
                ended = time.perf_counter()
                if killed:
                    await pool.wait_ready(timeout=30)
                    _tell(killed, events)
            stats = pool.stats()
        found.update(
            modules=len(rows),
            lines=sum(row["lines"] for row in rows),
            functions=sum(row["functions"] for row in rows),
            workers=workers,
            seconds=round(ended - opened, 3),
            start_seconds=round(opened - begun, 3),
            modules_per_second=round(len(modules) / (ended - opened), 1),
            top=sorted(rows, key=lambda row: -row["complexity"])[:10],
            killed=killed or None,
            restarts=stats.restarts,
        )
        if as_json:
            print(to_json(found, indent=2))
        else:
            _show(found, len(modules))
        return FAILED if found["errors"] else 0

    run(main, lambda: f"interrupted: {found['modules']} of {len(modules)} modules were measured")


def _examples() -> str:
    """Return the directory of the example adapters, in an installed package or in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "examples"
    return str(installed if installed.is_dir() else package.parent / "examples")


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if not _SKIPPED.intersection(path.relative_to(root).parts))


def _tell(killed: dict[str, Any], events: Any) -> None:
    """Record, from the events, the fate of the killed worker's calls and the time until its replacement."""
    at = killed.pop("at")
    again = []
    while (event := events.receive_nowait()) is not None:
        if event.name == "request.dispatched" and event.metadata["attempt"] > 1:
            again.append({"request": event.metadata["request_id"], "worker": event.metadata["worker_id"]})
        elif event.name == "worker.ready" and event.time > at and "replaced_after" not in killed:
            killed["replaced_by"] = event.metadata["worker_id"]
            killed["replaced_after"] = round(event.time - at, 3)
    killed["run_again"] = again


def _show(found: dict[str, Any], asked: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    root = Path(sysconfig.get_path("stdlib"))
    table = Table(title=f"The most complex modules of Python {sys.version.split()[0]}'s standard library", box=None)
    for title, justify in [("module", "left"), ("lines", "right"), ("functions", "right"), ("complexity", "right"),
                           ("nesting", "right"), ("longest function", "left"), ("lines", "right")]:  # fmt: skip
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for row in found["top"]:
        longest = row["longest"]
        table.add_row(
            str(Path(row["path"]).relative_to(root)),
            f"{row['lines']:,}",
            f"{row['functions']:,}",
            f"{row['complexity']:,}",
            str(row["nesting"]),
            longest["name"] if longest else "",
            f"{longest['lines']:,}" if longest else "",
        )
    console.print(table)
    console.print()
    console.print(
        f"{found['modules']:,} of {asked:,} modules ({found['lines']:,} lines, {found['functions']:,} functions) by "
        f"{found['workers']} workers in {found['seconds']:.1f} s: {found['modules_per_second']:.0f} modules/s "
        f"(the pool was ready after {found['start_seconds']:.2f} s)."
    )
    killed = found["killed"]
    if killed:
        calls = len(killed["run_again"])
        console.print(
            f"Worker {killed['worker']} (pid {killed['pid']}) was killed with SIGKILL after {killed['after']:,} modules: "
            f"{'its call was' if calls == 1 else f'its {calls} calls were'} run again by another worker, and a new one "
            f"took its place after {killed.get('replaced_after', float('nan')):.2f} s. "
            + ("Nothing was lost." if found["modules"] == asked else "")
        )
    for error in found["errors"]:
        console.print(f"failed: {error['path']}: {error['message']}", style="red")
