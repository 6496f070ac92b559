"""Faults of a pool that is none: which worker is meant, and what its process is sent, when."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import anyio
import psutil
import pytest
import trio
import trio.testing

from snakepit_trio.testing import faults
from snakepit_trio.testing.faults import Faults

KILL, STOP, CONT = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT


class System:
    """Workers, and a system that keeps what is sent to whom and when; ``gone`` are those that it has no more."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *workers: tuple[str, int | None, str], strangers: Any = ()
    ) -> None:
        self.sent: list[tuple[int, int]] = []
        self.times: list[float] = []
        self.gone: set[int] = set()
        self.clock: Callable[[], float] = lambda: 0.0
        found = [SimpleNamespace(id=id, pid=pid, state=state) for id, pid, state in workers]
        children = [SimpleNamespace(pid=pid) for _, pid, _ in workers if pid is not None and pid not in strangers]
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(children=lambda recursive: children))
        monkeypatch.setattr(faults, "os", SimpleNamespace(kill=self.kill))
        self.faults = Faults(cast("Any", SimpleNamespace(name="p", workers=lambda: found)))

    def kill(self, pid: int, number: int) -> None:
        if pid in self.gone:
            raise ProcessLookupError
        self.sent.append((pid, number))
        self.times.append(self.clock())


def test_a_busy_one_is_meant_or_a_ready_one(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, ("a", 1, "starting"), ("b", 2, "ready"), ("c", 3, "busy"))
    assert system.faults.kill().id == "c" and system.faults.kill("a").id == "a"
    assert system.faults.kill(signal_number=signal.SIGTERM).id == "c"
    assert system.sent == [(3, KILL), (1, KILL), (3, signal.SIGTERM)]
    assert System(monkeypatch, ("a", 1, "starting"), ("b", 2, "ready")).faults.kill().id == "b"


def test_a_process_that_is_not_ours_is_nobodys_to_break(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, ("a", 1, "busy"), ("b", None, "busy"), ("c", 3, "draining"), strangers={1})
    for worker_id, words in ((None, "that is ready"), ("a", "a"), ("b", "b"), ("none", "none")):
        with pytest.raises(ProcessLookupError, match=f"pool 'p' has no worker {words} of this process"):
            system.faults.kill(worker_id)
    assert not system.sent


def test_whoever_is_stopped_goes_on_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, ("a", 1, "busy"), ("b", 2, "ready"), ("c", 3, "ready"))
    with system.faults as broken:
        assert broken.stop().id == "a" and broken.stop("b").id == "b" and broken.stop("c").id == "c"
        broken.resume("b")
        broken.resume("none")
        assert system.sent == [(1, STOP), (2, STOP), (3, STOP), (2, CONT)]
        system.gone.add(3)
    assert system.sent[4:] == [(1, CONT)]


@pytest.mark.anyio
@pytest.mark.parametrize("share", [0, 1, -0.1, 1.1, math.nan])
async def test_a_share_that_is_none(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    system = System(monkeypatch, ("a", 1, "busy"))
    with pytest.raises(ValueError, match="between 0 and 1"):
        async with system.faults.slow(share=share):
            pytest.fail("slowed")
    assert not system.sent


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_worker_that_runs_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    async def main() -> None:
        system = System(monkeypatch, ("a", 1, "busy"))
        system.clock = anyio.current_time
        begun = anyio.current_time()
        async with system.faults.slow(share=share) as worker:
            assert worker.id == "a"
            await anyio.sleep(2.3 * faults._TURN)
        assert [number for _, number in system.sent] == [STOP, CONT] * 3 + ([CONT] if share > 0.7 else [])
        moments = [(at - begun) / faults._TURN for at in system.times[:5]]
        assert moments == pytest.approx([0, 1 - share, 1, 2 - share, 2])
        assert not system.faults._stopped

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.anyio
async def test_a_worker_that_ends_while_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch, ("a", 1, "busy"))
    async with system.faults.slow():
        system.gone.add(1)
        await anyio.sleep(0.01)
    assert (1, CONT) not in system.sent
