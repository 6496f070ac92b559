"""``snakepit diagnose``: estimate how many workers fit, time calls, or fetch a running runtime's flight recorder dump."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import FAILED, fail, run, to_json
from .words import cell, duration, size

__all__ = ["diagnose"]


def diagnose(
    adapter: Annotated[
        str | None,
        typer.Argument(
            help="module or module:Class whose workers are measured; by default an adapter that does nothing."
        ),
    ] = None,
    flight: Annotated[
        bool, typer.Option("--flight", help="Fetch the flight recorder's dump of a running runtime instead.")
    ] = False,
    run_id: Annotated[str | None, typer.Option("--run", help="The run's id, or the beginning of it.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the dump to this file, which only you can read.")] = None,
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Start a few workers on temporary state, measure them, and estimate how many fit; time calls and cancellations.

    With --flight nothing is started: the dump of a running runtime's flight recorder is printed.
    """
    if flight:
        _flight(state_dir, run_id, output, as_json=as_json)
        return
    if run_id is not None or output is not None:
        fail("--run and --output go with --flight", 2)

    async def main() -> int:
        from .measure import measure

        found = await measure(adapter)
        if as_json:
            print(to_json(found, indent=2))
        else:
            _show(found)
        return FAILED if found["latency"]["failed"] else 0

    run(main)


def _show(found: dict[str, Any]) -> None:
    scaling, latency = found["scaling"], found["latency"]
    each, room, fits = scaling["per_worker"], scaling["room"], scaling["fits"]
    print(f"Workers of {cell(found['adapter'])}")
    print(f"  the first was ready after {duration(scaling['first_worker_after'])}, each more after "
          f"{duration(scaling['next_worker_after'])}")  # fmt: skip
    for name, unit in (("memory", size), ("descriptors", str), ("pids", str)):
        left = "no limit" if room[name] is None else f"room for {unit(room[name])}: {fits[name]} workers"
        shared = f" of its own ({size(each['rss'])} with what is shared)" if name == "memory" else ""
        print(f"  {name}: {unit(each[name])}{shared} each, {left}")
    if scaling["limited_by"] is not None:
        print(
            f"  so {scaling['workers']} fit, limited by {scaling['limited_by']}; {scaling['cores']} can run at the same time"
        )
    print("Calls of a tool that does nothing")
    print(f"  one after another: {duration(latency['p50'])} in the median, {duration(latency['p99'])} for 99 of 100")
    print(f"  {latency['callers']} callers at once: {latency['calls_per_second']:.0f} calls/s")
    print(f"  a cancelled scope was left within {duration(latency['cancel_max'])}")


def _flight(state_dir: str | None, run_id: str | None, output: Path | None, *, as_json: bool) -> None:
    from .runs import choose

    entry = choose(state_dir, run_id)

    async def main() -> int:
        from snakepit_trio.control.client import connect

        async with connect(entry.control) as client:
            dump = await client.ask("flight", timeout=30.0)
        if output is None:
            print(to_json(dump, indent=None if as_json else 2))
            return 0
        _write(output, dump)
        print(f"{output}: {len(dump.get('events', ()))} events of run {entry.run_id}")
        return 0

    run(main)


def _write(output: Path, dump: dict[str, Any]) -> None:
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            json.dump(dump, file, indent=1)
            file.write("\n")
    except OSError as exc:
        fail(f"can't write {output}: {exc.strerror}", FAILED)
