"""Arrays that travel through shared memory in the simulator: each is what was sent, and every place comes back whoever dies."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.simulation import segments
from tests.simulation.scenario import Caller, Fault, Scenario
from tests.simulation.simulator import Result, leaf, run


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)


def simulate(*faults: str, close_at: float | None = None) -> Result:
    """Sessions and nested calls send arrays in rings, while workers fail at the frames of such."""
    callers = [
        Caller(number=n, kind=kind, at=0.002 * n, params={"seconds": 0.001, "number": n}, count=3, more="array")
        for n, kind in enumerate(["session", "nested", "session", "execute"] * 4)
    ]
    return run(
        Scenario(
            seed=5,
            options={"size": 2, "threads": 2, "cancel_set_ttl": 1.0, "restart_limit": 1000, "poison_limit": None},
            callers=tuple(callers),
            faults=tuple(Fault(number=n, kind=kind, worker=1 + n, frame=8) for n, kind in enumerate(faults)),
            delay=0.0005,
            close_at=close_at,
        )
    )


@pytest.mark.parametrize("close_at", [None, 0.02])
@pytest.mark.parametrize(
    "faults", [(), ("crash_before", "crash_after"), ("cut", "torn"), ("twice", "mute"), ("leave", "garbage")]
)
def test_every_place_comes_back(faults: tuple[str, ...], close_at: float | None) -> None:
    result = simulate(*faults, close_at=close_at)
    assert result.failure is None, leaf(result.failure)
    assert faults or close_at or result.memory.keys() == {"lent", "borrowed", "sent back", "came back"}


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (segments.WorkerMemory, "_settle", "never came back"),
        (segments._HostMemory, "_settle", "never came back"),
        (segments.Budget, "give", "bytes"),
    ],
)
def test_what_does_not_come_back_is_seen(owner: Any, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Any, *args: Any) -> None:
        if name == "_settle":
            self._leases.discard(*args)

    monkeypatch.setattr(owner, name, lost)
    assert words in str(leaf(simulate().failure))
