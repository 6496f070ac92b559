"""``snakepit worker`` and ``snakepit resize``: actions of an operator on a running runtime."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from .common import FAILED, fail, run, to_json
from .words import cell

__all__ = ["resize", "worker"]


class Action(StrEnum):
    """An action on one worker."""

    drain = "drain"
    cordon = "cordon"
    uncordon = "uncordon"
    restart = "restart"
    kill = "kill"


def worker(
    action: Annotated[
        Action,
        typer.Argument(
            help="cordon: stop giving it calls; uncordon: give it calls again; drain: cordon, and wait for its calls to end; "
            "restart: start a replacement, then drain; kill: end it at once, with its calls."
        ),
    ],
    worker_id: Annotated[
        str,
        typer.Argument(metavar="WORKER", help="The worker's id as `snakepit status` shows it, or the beginning of it."),
    ],
    run_id: Annotated[str | None, typer.Option("--run", help="The run's id, or the beginning of it.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the end of the action.", min=0.001)] = 60.0,
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Drain, cordon, restart or kill one worker of a running runtime.

    A restart that takes longer than --timeout continues nevertheless.
    """

    async def act(client: Any) -> dict[str, Any]:
        status = await client.ask("status")
        found = [
            known["id"] for pool in status["pools"] for known in pool["workers"] if known["id"].startswith(worker_id)
        ]
        if len(found) != 1:
            fail(f"{len(found) or 'no'} workers have an id beginning with {worker_id!r}", FAILED)
        more = {"timeout_seconds": timeout} if action is Action.drain else {}
        answer: dict[str, Any] = await client.ask(action.value, timeout=timeout + 5.0, worker=found[0], **more)
        if answer.get("replaced") is False:
            fail(f"worker {found[0]} continues: its replacement could not start", FAILED)
        return answer

    _act(
        state_dir,
        run_id,
        act,
        lambda answer: f"{action.value} of worker {cell(answer['worker'])}: done",
        as_json=as_json,
    )


def resize(
    size: Annotated[int, typer.Argument(help="The wanted number of workers.", min=1)],
    pool: Annotated[
        str, typer.Option(help="The pool's name; by default `default`, or the only pool.", show_default=False)
    ] = "",
    run_id: Annotated[str | None, typer.Option("--run", help="The run's id, or the beginning of it.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the end of the action.", min=0.001)] = 60.0,
    state_dir: Annotated[str | None, typer.Option(help="The state directory, in which runs are registered.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Change the number of workers of a pool; returns when new workers are ready and surplus ones have ended.

    A change that takes longer than --timeout continues nevertheless.
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
