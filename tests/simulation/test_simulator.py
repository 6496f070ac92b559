"""A runtime whole but for its processes, under every fault that a scenario can name, each scenario from a seed."""

from __future__ import annotations

import logging
import os
from collections import Counter

import attrs
import pytest

from snakepit_trio.pool.ledger import Ledger
from tests.simulation.scenario import FRAME_FAULTS, START_FAULTS, Caller, Scenario, draw
from tests.simulation.simulator import Result, command, explain, run, shrink

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
    for seed in (1, 7, 19):
        once, again = run(draw(seed)), run(draw(seed))
        assert once.history == again.history
        assert once == again


def test_the_first_seeds_show_every_fault_and_every_outcome() -> None:
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for seed in range(SHOWING):
        result = holds(seed)
        outcomes += result.outcomes
        faults += result.faults
        assert result.checks or "open:WorkerStartupError" in result.outcomes
    assert faults.keys() == {*FRAME_FAULTS, *START_FAULTS, "leave"}
    ends = {name.partition(":")[2] for name in outcomes}
    assert ends >= {
        "completed", "cancelled", "RequestTimeout", "QueueTimeout", "QueueFull", "WorkerCrashed", "PoolClosed",
        "WorkerStartupError", "WouldDeadlock", "InvalidParameter",
    }  # fmt: skip


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
    """A ledger that forgets to count what it cancels: one caller is enough to show it."""

    def forget(self: Ledger, *arguments: object) -> None:
        self._ended["cancelled"] -= 1
        cancel(self, *arguments)  # type: ignore[arg-type]

    cancel = Ledger.cancel
    monkeypatch.setattr(Ledger, "cancel", forget)
    whole = attrs.evolve(draw(2), close_at=None)
    part, result = shrink(whole)
    assert len(part.callers) == 1
    assert not part.faults
    text = explain(part, result, whole)
    assert "lost: Totals" in text
    assert f"--callers {part.callers[0].number}" in command(part, whole)
    assert whole.only({part.callers[0].number}, set(), whole.options.keys() - part.options.keys()) == part
