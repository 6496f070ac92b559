"""``snakepit worker`` and ``snakepit resize``: what an operator does to a running runtime."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from .common import FAILED, fail, run, to_json
from .words import cell

__all__ = ["resize", "worker"]


class Action(StrEnum):
    """What can be done to one worker."""

    drain = "drain"
    cordon = "cordon"
    uncordon = "uncordon"
    restart = "restart"
    kill = "kill"


def worker(
    action: Annotated[
        Action,
        typer.Argument(
            help="cordon: no more calls; uncordon: calls again; drain: cordon, and wait until it holds none; restart: a new one "
            "takes its place, then it drains; kill: at once, with the calls that it holds."
        ),
    ],
    worker_id: Annotated[
        str, typer.Argument(metavar="WORKER", help="Its id, as `snakepit status` shows it; the beginning will do.")
    ],
    run_id: Annotated[str | None, typer.Option("--run", help="Of this run; the beginning of its id will do.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to be done.", min=0.001)] = 60.0,
    state_dir: Annotated[str | None, typer.Option(help="Where runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Drain, cordon, restart or kill one worker of a running runtime.

    A restart that takes longer than --timeout goes on all the same.
    """

    async def act(client: Any) -> dict[str, Any]:
        status = await client.ask("status")
        found = [
            known["id"] for pool in status["pools"] for known in pool["workers"] if known["id"].startswith(worker_id)
        ]
        if len(found) != 1:
            fail(f"{len(found) or 'no'} workers have an id that begins with {worker_id!r}", FAILED)
        more = {"timeout_seconds": timeout} if action is Action.drain else {}
        answer: dict[str, Any] = await client.ask(action.value, timeout=timeout + 5.0, worker=found[0], **more)
        if answer.get("replaced") is False:
            fail(f"worker {found[0]} goes on: no new one could take its place", FAILED)
        return answer

    _act(
        state_dir,
        run_id,
        act,
        lambda answer: f"{action.value} of worker {cell(answer['worker'])}: done",
        as_json=as_json,
    )


def resize(
    size: Annotated[int, typer.Argument(help="How many workers the pool is to have.", min=1)],
    pool: Annotated[str, typer.Option(help="The pool's name.")] = "default",
    run_id: Annotated[str | None, typer.Option("--run", help="Of this run; the beginning of its id will do.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to be done.", min=0.001)] = 60.0,
    state_dir: Annotated[str | None, typer.Option(help="Where runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Change how many workers a pool of a running runtime has; returns when the new ones are ready and the others gone.

    What takes longer than --timeout goes on all the same.
    """

    async def act(client: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await client.ask("resize", timeout=timeout, pool=pool, size=size)
        return answer

    _act(
        state_dir,
        run_id,
        act,
        lambda answer: f"pool {cell(answer['pool'])} has {answer['size']} workers",
        as_json=as_json,
    )


def _act(state_dir: str | None, run_id: str | None, act: Any, describe: Any, *, as_json: bool) -> None:
    from .runs import choose

    entry = choose(state_dir, run_id)

    async def main() -> int:
        from snakepit_trio.control.client import connect

        async with connect(entry.control) as client:
            answer = await act(client)
        print(to_json(answer) if as_json else describe(answer))
        return 0

    run(main)
