"""One exception in one function of the host while a whole runtime runs: nothing but what it ran for ends, and all adds up.

A sample of the functions; all of them, in more scenarios: ``SNAKEPIT_TEST_INJECTION=all pytest tests/simulation/test_injection.py``.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter

import pytest

from snakepit_trio.pool.scheduling.ledger import Ledger
from tests.injection.scenario import leaves
from tests.injection.tracing import Injected
from tests.simulation.injection import attempt, tries

ALL = os.environ.get("SNAKEPIT_TEST_INJECTION") == "all"
SEEDS = range(1, 25) if ALL else range(1, 4)
SAMPLE = 40


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


@pytest.mark.timeout(3600 if ALL else 120)
def test_an_exception_ends_no_more_than_what_it_ran_for(internal_errors: list[BaseException]) -> None:
    chosen = list(tries(list(SEEDS)))
    assert len(chosen) > 500
    if not ALL:
        chosen = chosen[:: len(chosen) // SAMPLE]
    found = [attempt(*one) for one in chosen]
    assert not list(filter(None, found)), "\n".join(filter(None, found))
    assert internal_errors
    assert all(isinstance(one, Injected) for error in internal_errors for one in leaves(error))


#: What the ledger calls: a worker's port, the observer, whoever waits for a request.
OUTSIDE = [
    r"pool/fleet/dispatch\.py _WorkerPort\.start$", r"pool/fleet/dispatch\.py _WorkerPort\.cancel$",
    r"pool/observer\.py RequestObserver\.__call__$", r"_waiting\.py .*Waiter\.wake$", r"pool/calls/stream\.py ChunkStream\.wake$",
    r"_map_results\.py .*\.wake$",
]  # fmt: skip
#: Calls that are sent ahead and taken back are rare.
RARELY = [r"pool/fleet/dispatch\.py _WorkerPort\.withdraw$", r"pool/fleet/dispatch\.py _WorkerPort\.recall$"]


@pytest.mark.timeout(3600 if ALL else 120)
def test_what_the_ledger_calls_may_raise(internal_errors: list[BaseException]) -> None:
    wanted = OUTSIDE + RARELY if ALL else OUTSIDE
    raised = Counter[str]()
    for seed, target, entry in tries(list(range(1, 61 if ALL else 4)), "|".join(wanted)):
        known = len(internal_errors)
        found = attempt(seed, target, entry)
        assert found is None, found
        (name,) = (name for name in wanted if re.search(name, f"{target.file} {target.name}"))
        raised[name] += len(internal_errors) > known
    assert set(raised) == set(wanted), raised
    assert all(raised.values()), raised


@pytest.mark.parametrize("name", ["Ledger.finish", "Incarnations._settle"])
def test_books_that_are_not_put_in_order_are_found(
    name: str, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    (one,) = tries([1], f"^pool/.* {name}$", (1,))
    assert attempt(*one) is None
    monkeypatch.setattr(Ledger, "fail", lambda *_: None)
    found = attempt(*one)
    assert found is not None
    assert f"{name} #1: AssertionError: " in found
