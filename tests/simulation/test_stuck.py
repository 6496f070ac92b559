"""Nested calls beside a tool that does not stop: nobody waits for what comes free only with the end of a worker that waits for them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import snakepit_trio as sp
from tests.simulation.scenario import Caller, Scenario
from tests.simulation.simulator import Result, run

_LIMITS = {"limits": [sp.LimitConfig(tools=("work",), concurrency=1)]}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


def simulate(
    *callers: tuple[str, float, dict[str, Any]], others: tuple[dict[str, Any], ...] = (), **options: Any
) -> Result:
    """Run callers, each with its kind, when it begins and its options; every invariant holds, and the scenario ends."""
    result = run(
        Scenario(
            seed=1,
            options={
                "threads": 2,
                "queue_timeout": None,
                "timeout": None,
                "cancel_grace": 0.2,
                "cancel_set_ttl": 1.0,
                **options,
            },
            callers=tuple(
                Caller(**{"number": number, "kind": kind, "at": at, "params": {"seconds": 0.01}, **more})
                for number, (kind, at, more) in enumerate(callers)
            ),
            faults=(),
            delay=0.0001,
            close_at=None,
            others=others,
        )
    )
    if result.failure is not None:
        raise result.failure
    return result


#: One call that hears no cancel, and is left after 0.1 s.
_STUCK = ("execute", 0.0, {"params": {"seconds": 1000, "stuck": True}, "timeout": 0.1})


@pytest.mark.parametrize("at", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("options", [_LIMITS, {}], ids=["permit", "seat"])
def test_a_nested_call_does_not_wait_for_what_its_own_worker_keeps(at: float, options: dict[str, Any]) -> None:
    # Without limits there are two seats: one is stuck, and the outer call has the other.
    result = simulate(_STUCK, ("nested", at, {}), size=1, **options)
    ends = {"execute:RequestTimeout": 1, "nested:WouldDeadlock": 1}
    if at == 0.5:
        # The worker has ended by then.
        ends = {"execute:RequestTimeout": 1, "nested:completed": 1}
    assert result.outcomes == ends


def test_of_two_that_wait_in_each_others_workers_one_is_refused() -> None:
    result = simulate(_STUCK, _STUCK, ("nested", 0.05, {}), ("nested", 0.05, {}), size=2)
    assert result.outcomes == {"execute:RequestTimeout": 2, "nested:WouldDeadlock": 1, "nested:completed": 1}


def test_nor_does_one_that_comes_back_by_way_of_another_pool() -> None:
    there_and_back = ("nested", 0.05, {"path": (1, 0)})
    result = simulate(_STUCK, there_and_back, size=1, others=({"name": "other", "size": 1, "timeout": None},))
    ends = {"execute:RequestTimeout": 1, "nested:WouldDeadlock": 1, "across pools:WouldDeadlock": 1}
    assert result.outcomes == ends


@pytest.mark.parametrize("options", [_LIMITS, {}], ids=["permit", "seat"])
def test_a_nested_call_waits_for_a_tool_that_may_yet_stop(options: dict[str, Any]) -> None:
    slow = ("execute", 0.0, {"params": {"seconds": 3, "stuck": True}, "timeout": 0.1})
    result = simulate(slow, ("nested", 0.05, {}), size=1, on_cancel="abandon", **options)
    assert result.outcomes == {"execute:RequestTimeout": 1, "nested:completed": 1}
    stops = ("execute", 0.0, {"params": {"seconds": 1000}, "timeout": 0.1})
    result = simulate(stops, ("nested", 0.05, {}), size=1, **options)
    assert result.outcomes == {"execute:RequestTimeout": 1, "nested:completed": 1}


def test_a_nested_call_waits_for_a_worker_that_ends_after_others() -> None:
    # The neighbour of the stuck call waits for nobody.
    busy = ("execute", 0.01, {"params": {"seconds": 2}})
    result = simulate(
        _STUCK, busy, ("nested", 0.05, {}), size=2, threads=2, limits=[sp.LimitConfig(tools=("work",), concurrency=2)]
    )
    assert result.outcomes == {"execute:RequestTimeout": 1, "execute:completed": 1, "nested:completed": 1}
