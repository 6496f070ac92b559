"""A runtime whole but for its processes, under every fault that a scenario can name, each scenario from a seed."""

from __future__ import annotations

import logging
import os
from collections import Counter

import attrs
import pytest

import snakepit_trio as sp
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from tests.simulation.scenario import (
    FRAME_FAULTS,
    HOST_FRAMES,
    MORE,
    START_FAULTS,
    WORKER_FRAMES,
    Caller,
    Fault,
    Scenario,
    draw,
)
from tests.simulation.simulator import Result, command, explain, leaf, run, shrink

SEEDS = int(os.environ.get("SNAKEPIT_TEST_SEEDS", "300"))
BLOCK = 25
#: Between them, so many show every fault and every outcome.
SHOWING = 60


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    # Thousands of workers die here, and each says so.
    caplog.set_level(logging.CRITICAL + 1)


def holds(seed: int) -> Result:
    """Every invariant holds at every step of a seed."""
    whole = draw(seed)
    result = run(whole)
    if result.failure is not None:
        part, smaller = shrink(whole)
        pytest.fail(explain(part, smaller, whole), pytrace=False)
    return result


@pytest.mark.parametrize("block", range(SHOWING, SEEDS, BLOCK))
def test_every_invariant_holds_at_every_step(block: int) -> None:
    for seed in range(block, min(block + BLOCK, SEEDS)):
        holds(seed)


def test_the_same_seed_gives_the_same_history() -> None:
    # Calls of the last one are tried again after pauses of random length.
    for seed in (1, 7, 19, 7043):
        once, again = run(draw(seed)), run(draw(seed))
        assert once.history == again.history
        assert once == again


def test_the_first_seeds_show_every_fault_and_every_outcome() -> None:
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for seed in range(SHOWING):
        result = holds(seed)
        outcomes += result.outcomes
        faults += result.faults
        memory += result.memory
        assert result.checks or "open:WorkerStartupError" in result.outcomes
    assert {"across pools:completed", "across pools:cancelled", "one of several:PoolClosed"} <= outcomes.keys()
    assert memory.keys() >= {"lent", "borrowed", "came back", "inline", "outlived"}
    assert faults.keys() == {*FRAME_FAULTS, *START_FAULTS, "leave"}
    ends = {name.partition(":")[2] for name in outcomes}
    assert ends >= {
        "completed", "cancelled", "RequestTimeout", "QueueTimeout", "QueueFull", "WorkerCrashed", "PoolClosed",
        "WorkerStartupError", "WouldDeadlock", "InvalidParameter", "ToolError", "Boom", "CircuitOpen", "QuotaExceeded",
        "SessionNotFound", "SessionWorkerUnavailable",
    }  # fmt: skip
    assert {"map input:ToolError", "map input:WorkerCrashed", "map input:InvalidParameter"} <= outcomes.keys()


def test_the_scenarios_have_every_option() -> None:
    drawn: Counter[str] = Counter()
    for scenario in map(draw, range(SHOWING, 4 * SHOWING)):
        options = sp.PoolConfig(adapter="m", **scenario.options)
        for name, value in {
            "threads": options.threads, "max_queue": options.max_queue, "aging": options.aging, "fair": options.fair,
            "poison_limit": options.poison_limit, "prefetch": options.prefetch, "on_cancel": options.on_cancel,
            "min_size": options.min_size, "spares": options.spares, "limits": len(options.limits),
            "retry": options.retry is not None, "hedge": options.hedge is not None, "circuit": options.circuit is not None,
        }.items():  # fmt: skip
            drawn[f"{name} {value}"] += 1
        for caller in scenario.callers:
            drawn.update(
                [f"sends {caller.more}", f"is {caller.kind}", f"inputs {caller.inputs}", f"limit {caller.limit}"]
            )
            drawn.update(
                f"{name} {getattr(caller, name)}" for name in ("ordered", "errors", "affinity", "ttl", "ends", "raises")
            )
            drawn.update(caller.params)
        drawn.update(fault.at for fault in scenario.faults)
    wanted = [
        *(f"threads {n}" for n in (1, 2, 3, 4)), "max_queue 0", "max_queue None", "max_queue 2", "aging None", "aging 0.005",
        "aging 0.5", "fair True", "poison_limit None", "poison_limit 1", "poison_limit 3", "prefetch 0", "on_cancel abandon",
        "min_size 0", "min_size 1", "spares 1", "limits 1", "limits 2", "retry True", "hedge True", "circuit True",
        *(f"sends {name}" for name in MORE), "inputs slow", "inputs raising", "limit None", "ordered False", "errors True",
        "affinity hint", "affinity strict_queue", "affinity strict_fail_fast", "ttl 0.02", "ends True", "raises 0",
        "deaf", "late", "lethal", "stuck", "grind", "fails", *HOST_FRAMES, *WORKER_FRAMES,
    ]  # fmt: skip
    assert not [what for what in wanted if drawn[what] < 2], drawn


def test_a_fault_at_each_kind_of_frame() -> None:
    """With a caller for each: streams that need credits, calls of the host, and calls that are given up in the middle of one."""
    callers = [
        Caller(number=0, kind="stream", at=0.0, params={"seconds": 0.001}, count=40),
        Caller(number=1, kind="execute", at=0.0, params={"seconds": 0.05}, timeout=0.01),
        Caller(number=2, kind="nested", at=0.0, params={"seconds": 0.01}, timeout=5.0),
        Caller(number=3, kind="nested", at=0.05, params={"seconds": 0.2}, patience=0.03),
        *(Caller(number=n, kind="execute", at=0.3 + n / 100, params={"seconds": 0.001}) for n in range(4, 10)),
    ]
    met: Counter[str] = Counter()
    for number, kind in enumerate((*HOST_FRAMES, *WORKER_FRAMES)):
        every_third = (*FRAME_FAULTS, "leave")[number % 3 :: 3]
        for fault in ("crash_before", "crash_after", "leave") if kind in HOST_FRAMES else every_third:
            faults = [Fault(number=n, kind=fault, worker=n + 1, frame=1, at=kind) for n in range(2)]
            if kind == "Leaving":
                faults += [Fault(number=n + 2, kind="leave", worker=n + 1, frame=3) for n in range(2)]
            result = run(
                Scenario(
                    seed=1,
                    options={
                        "size": 2,
                        "threads": 2,
                        "cancel_grace": 0.2,
                        "heartbeat_interval": 0.2,
                        "cancel_set_ttl": 0.2,
                    },
                    callers=tuple(callers),
                    faults=tuple(faults),
                    delay=0.0002,
                    close_at=None,
                )
            )
            assert result.failure is None, f"{fault} at {kind}: {leaf(result.failure)!r}"
            met[kind] += result.at[kind]
            met[fault] += result.at[kind]
    missing = {*HOST_FRAMES, *WORKER_FRAMES, *FRAME_FAULTS, "leave"} - met.keys()
    assert not missing and min(met.values()) > 0, met


def test_calls_that_end_their_workers_cost_nobody_else_anything() -> None:
    lethal = [Caller(number=i, kind="execute", at=0.1 * i, params={"seconds": 0.0, "lethal": True}) for i in range(40)]
    others = [Caller(number=100 + i, kind="execute", at=0.04 * i, params={"seconds": 0.001}) for i in range(100)]
    result = run(
        Scenario(
            seed=0,
            options={"size": 2, "restart_limit": 0, "prefetch": 0},
            callers=(*lethal, *others),
            faults=(),
            delay=0.0002,
            close_at=None,
        )
    )
    assert result.failure is None
    assert result.outcomes == {"execute:WorkerCrashed": 40, "execute:completed": 100}


def test_a_failure_is_made_small_and_can_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that forgets to count what it cancels: one caller is enough to show it."""

    def forget(self: Scheduler, *arguments: object) -> None:
        self.ledger.ended["cancelled"] -= 1
        cancel(self, *arguments)  # type: ignore[arg-type]

    cancel = Scheduler.cancel
    monkeypatch.setattr(Scheduler, "cancel", forget)
    whole = attrs.evolve(draw(2), close_at=None)
    part, result = shrink(whole)
    assert len(part.callers) == 1
    assert not part.faults
    text = explain(part, result, whole)
    assert "lost: Totals" in text
    assert f"--callers {part.callers[0].number}" in command(part, whole)
    assert whole.only({part.callers[0].number}, set(), whole.options.keys() - part.options.keys()) == part
