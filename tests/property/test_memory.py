"""Whatever two sides send each other, in any order, and whenever they let go of it: no view ever changes."""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio.wire import memory as shared
from snakepit_trio.wire.frames import MSGPACK, Payload, SharedBlock
from snakepit_trio.wire.memory import THRESHOLD, Budget, SharedMemory, make_file

#: In place of the threshold, to be quicker.
SMALL = 4096
LIMIT = 16 * SMALL


class Sides:
    """Both sides of one file, and the views that each of them holds."""

    def __init__(self) -> None:
        self.fd = make_file()
        self.budgets = {side: Budget(LIMIT) for side in "io"}
        self.sides = {side: SharedMemory(side, lambda: os.dup(self.fd), self.budgets[side], 1 << 30) for side in "io"}
        self.number = 0
        self.held: list[tuple[str, Any, int]] = []

    def send(self, sender: str, size: int) -> None:
        self.number += 1
        content = self.number % 251 + 1
        self._receive(sender, np.full(size, content, np.uint8), content)

    def send_on(self, which: int, cut: int) -> None:
        """Send what was received, or a part of it, where it came from."""
        if self.held:
            side, view, content = self.held[which % len(self.held)]
            self._receive(side, view[cut % len(view) // 2 :], content)

    def let_go(self, which: int) -> None:
        if self.held:
            del self.held[which % len(self.held)]

    def _receive(self, sender: str, buffer: Any, content: int) -> None:
        receiver = "o" if sender == "i" else "i"
        [sent] = self.sides[sender].lend(Payload(MSGPACK, b"", [memoryview(buffer)])).buffers
        if isinstance(sent, SharedBlock):
            [view] = self.sides[receiver].borrow(Payload(MSGPACK, b"", [sent])).buffers
            self.held.append((receiver, np.frombuffer(view, np.uint8), content))  # type: ignore[arg-type]

    def check(self) -> None:
        for _, view, content in self.held:
            assert view[0] == view[-1] == content
        for side, memory in self.sides.items():
            assert sum(memory.sizes) == self.budgets[side].used <= LIMIT

    def close(self) -> None:
        # The worker ends, and with it its views; the host's stay.
        self.held = [held for held in self.held if held[0] == "i"]
        self.sides["i"].close()
        self.check()
        self.held.clear()
        assert os.fstat(self.fd).st_blocks * 512 <= os.sysconf("SC_PAGE_SIZE")
        self.sides["o"].close()
        os.close(self.fd)


STEPS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from("io"), st.integers(SMALL, 3 * SMALL)),
    st.tuples(st.just("send_on"), st.integers(0, 30), st.integers(0, 2 * SMALL)),
    st.tuples(st.just("let_go"), st.integers(0, 30)),
)


@given(st.lists(STEPS, max_size=25))
def test_no_view_ever_changes(steps: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "THRESHOLD", SMALL)
        both = Sides()
        for name, *arguments in steps:
            getattr(both, name)(*arguments)
            both.check()
        both.close()


def test_the_sides_meet_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks from seeds: what is sent goes through shared memory or, when there is no room, beside it; blocks are used again."""
    monkeypatch.setattr(shared, "THRESHOLD", SMALL)
    met: Counter[str] = Counter()
    for seed in range(40):
        rng, both = random.Random(seed), Sides()
        for _ in range(60):
            step = rng.choice(["send", "send", "send_on", "let_go", "let_go"])
            held, blocks = len(both.held), sum(len(memory.sizes) for memory in both.sides.values())
            if step == "send":
                both.send(rng.choice("io"), rng.randint(SMALL - 1, 3 * SMALL))
            elif step == "send_on":
                both.send_on(rng.randrange(30), rng.randrange(2 * SMALL))
            else:
                both.let_go(rng.randrange(30))
            more = sum(len(memory.sizes) for memory in both.sides.values()) > blocks
            met[
                f"{step}: {'shared' if len(both.held) > held else 'let go' if len(both.held) < held else 'inline'}"
            ] += 1
            met["used again"] += len(both.held) > held and not more
            both.check()
        both.close()
    for what in ("send: shared", "send: inline", "send_on: shared", "send_on: inline", "let_go: let go", "used again"):
        assert met[what] >= 10, met


@pytest.mark.parametrize("with_numpy", [True, False])
def test_all_is_given_back_and_used_again(with_numpy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    fd = make_file()
    host, worker = (SharedMemory(side, lambda: os.dup(fd), Budget(None), 1 << 30) for side in "io")
    data = bytes(range(256)) * 2048
    for _ in range(300):
        sent = host.lend(Payload(MSGPACK, b"", [memoryview(data), b"small", bytearray(data)]))
        found = worker.borrow(sent)
        assert found.buffers == [data, b"small", data]
        assert all(view.readonly for view in found.buffers if isinstance(view, memoryview))
        back = worker.lend(Payload(MSGPACK, b"", [bytes(found.buffers[0])]))
        assert host.borrow(back).buffers == [data]
        del found
    assert len(host.sizes) == 2 and len(worker.sizes) == 1
    host.close()
    worker.close()
    os.close(fd)


def test_a_fork_that_lets_go_of_a_view_does_not_do_so_for_its_parent() -> None:
    fd = make_file()
    host, worker = (SharedMemory(side, lambda: os.dup(fd), Budget(None), 1 << 30) for side in "io")
    sent = host.lend(Payload(MSGPACK, b"", [bytes(THRESHOLD)]))
    kept = list(worker.borrow(sent).buffers)
    pid = os.fork()
    if pid == 0:
        kept.clear()
        os._exit(0)
    os.waitpid(pid, 0)
    host.lend(Payload(MSGPACK, b"", [b"\1" * THRESHOLD]))
    assert len(host.sizes) == 2
    assert kept == [bytes(THRESHOLD)]
    host.close()
    worker.close()
    os.close(fd)


def test_what_has_no_room_travels_inline() -> None:
    fd = make_file()
    data = bytes(2 * THRESHOLD)
    for share, limit in ((lambda: None, None), (lambda: os.dup(fd), THRESHOLD), (lambda: os.dup(fd), 0)):
        memory = SharedMemory("i", share, Budget(limit), 1 << 30)
        assert memory.lend(Payload(MSGPACK, b"", [data])).buffers == [data]
        memory.close()
        memory.close()
    os.close(fd)
