"""The loop that two threads drive in turn: its real code, and the runner's, in every interleaving of their steps up to a bound.

A step is each operation that the other thread may notice: a read or a write of a shared attribute, an operation of the lock or
of the queue, a wait of the loop. A wait with a timeout may time out at any moment, so a thread may be as slow as it likes.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Hashable
from types import SimpleNamespace
from typing import Any

import pytest

from snakepit_trio.worker import main_thread, shared_loop
from snakepit_trio.worker.main_thread import MainThreadRunner
from snakepit_trio.worker.shared_loop import SharedLoop
from tests.interleavings import Actor, Interleavings

#: Runs of one scenario: about a second; under the profile "soak" there is no limit, and all are made in a few minutes.
MOST = None if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 300
pytestmark = pytest.mark.timeout(900)
SHARED = frozenset({"_crossings", "_parked", "in_user_code"})


class World:
    """A worker without a process: the runner and its loop, a network that delivers, and what the tools do."""

    def __init__(self, all_runs: Interleavings, tools: list[Callable[[World], None]], *, helper: bool = False) -> None:
        self.runs = all_runs
        self.point = all_runs.point
        self.tools = tools
        self.long_teardown = tools == [short]
        self.loop: Loop
        self.queues: list[Queue] = []
        self.baton: Lock
        self.running: dict[Actor | None, object] = {}
        self.outbox: list[str] = []
        self.sent: list[str] = []
        self.begun = self.ended = 0
        self.reported = self.heard = self.helped = False
        self.arriving = 0
        all_runs.spawn("owner", self.owner)
        all_runs.spawn("network", self.network)
        if helper:
            all_runs.spawn("helper", self.helper)

    def state(self) -> Hashable:
        if not hasattr(self, "runner"):
            return None
        shared = self.shared.__dict__
        return (
            *(shared[name] for name in sorted(SHARED)),
            self.baton.holder and self.baton.holder.name,
            *(tuple(q.items) for q in self.queues),
            *self.loop.state(),
            tuple((actor and actor.name, loop is not None) for actor, loop in self.running.items()),
            len(self.runner._line), self.runner._stopping,
            tuple(self.outbox), tuple(self.sent), self.begun, self.ended, self.heard, self.helped, self.arriving,
        )  # fmt: skip

    # ---- the threads -------------------------------------------------------------------------------

    def owner(self) -> None:
        self.me = self.runs.current
        runner = MainThreadRunner()
        self.shared = runner.shared
        runner.flush, runner.sweep = self.flush, self.sweep
        self.runner = runner
        started: list[bool] = []
        main: Any = self.main(started)

        def ready() -> None:
            self.shared.start(main, lambda: bool(started))
            self.reported = True

        runner.main(lambda: None, ready, self.teardown)
        self.loop.call_soon(self.loop.task.step)
        self.shared.close()
        assert self.loop.closed and self.baton.holder is self.me and not self.shared._away
        assert sorted(self.sent) == sorted(set(self.sent))
        assert not self.outbox or self.outbox == ["helper"]
        assert self.ended == len(self.tools) and all(f"reply {n}" in self.sent for n in range(self.ended))

    def main(self, started: list[bool]) -> Generator[None, None, None]:
        """What the loop runs meanwhile: waits for the end."""
        started.append(True)
        yield

    def network(self) -> None:
        for number, tool in enumerate(self.tools):
            self.deliver(lambda number=number, tool=tool: self.runner.submit(Call(self, number, tool)))  # type: ignore[misc]
            if tool in NEEDS_NEWS:
                self.point(lambda number=number: self.begun > number)  # type: ignore[misc]
                self.deliver(self.hear)
                self.point(lambda number=number: self.ended > number)  # type: ignore[misc]
        self.deliver(lambda: self.runner.stop())

    def deliver(self, callback: Callable[[], object]) -> None:
        # When the loop looks: nobody notices whether it was there before.
        self.point(lambda: self.reported and self.loop.driver is not None)
        self.loop.ready.append(callback)
        self.arriving += 1

    def helper(self) -> None:
        """A thread that a tool has left behind: it has something to say, at any time."""
        self.point(lambda: self.begun > 0)
        try:
            self.say("helper")
        except RuntimeError:
            assert self.loop.closed
        self.helped = True

    # ---- what the exchange does --------------------------------------------------------------------

    def hear(self) -> None:
        self.heard = True

    def say(self, what: str) -> None:
        self.point()
        self.outbox.append(what)
        self.shared.poke(self.flush)

    def flush(self) -> None:
        assert self.baton.holder is self.runs.current, "who writes has the baton"
        self.sent += self.outbox
        self.outbox.clear()

    def sweep(self) -> None:
        assert self.shared.__dict__["in_user_code"]

    def teardown(self) -> None:
        assert self.running[self.me] is None
        if self.long_teardown:
            self.heard = False
            self.loop.call_soon_threadsafe(self.hear)
            self.point(lambda: self.heard)


class Call:
    """A call, as the runner sees it."""

    def __init__(self, world: World, number: int, function: Callable[[World], None]) -> None:
        self.world, self.number, self.function = world, number, function
        self.tool = SimpleNamespace(options=SimpleNamespace(inline=function is inline), took=0.0)

    def claim(self) -> bool:
        return True

    def enter(self) -> None:
        self.world.begun += 1
        self.world.heard = False
        driving = self.function is inline
        assert (self.world.running[self.world.me] is self.world.loop) == driving, "user code has no loop of ours"

    def arguments(self) -> None:
        self.function(self.world)
        self.world.ended += 1
        self.world.say(f"reply {self.number}")

    def fail(self, exc: BaseException) -> None:
        raise exc


# ---- tools -----------------------------------------------------------------------------------------


def short(world: World) -> None:
    """Returns at once."""


def inline(world: World) -> None:
    """The same, and the thread keeps the loop."""


def long(world: World) -> None:
    """Runs until the loop, which nobody but the relief thread can drive now, has brought it news."""
    world.point(lambda: world.heard)
    world.runs.meet("relieved")


def sends(world: World) -> None:
    """Says something, and goes on until that is on its way."""
    world.say("chunk")
    world.point(lambda: "chunk" in world.sent)


def turns(world: World) -> None:
    """Says something and has it sent at once, unless the relief thread does that; then goes on for long."""
    world.say("chunk")
    world.shared.turn()
    world.runs.meet("sent at once" if "chunk" in world.sent else "left to the relief thread")
    long(world)
    world.point(lambda: "chunk" in world.sent)


def waits(world: World) -> None:
    """Waits for the host."""
    world.say("question")
    world.shared.wait(lambda: world.heard, None)
    assert world.heard and "question" in world.sent
    assert world.running[world.me] is None


def waits_in_vain(world: World) -> None:
    """Waits for what does not come in time, and goes on until the loop has brought something else."""
    world.shared.wait(lambda: False, 1.0)
    assert world.loop.now == 1.0
    long(world)


def is_helped(world: World) -> None:
    """Goes on until what another thread says is on its way."""
    world.point(lambda: "helper" in world.sent)


NEEDS_NEWS = (long, turns, waits, waits_in_vain)

# ---- what the code stands on -----------------------------------------------------------------------


class Watched(SharedLoop):
    """The real class; each use of what the threads share is a step."""

    world: World

    def __getattribute__(self, name: str) -> Any:
        # Nobody notices that the owner reads what only the owner writes.
        if name in SHARED and (name != "_crossings" or self.world.runs.current is not self.world.me):
            self.world.point()
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in SHARED:
            self.world.point()
        super().__setattr__(name, value)


class Lock:
    def __init__(self, world: World) -> None:
        self.world = world
        self.holder: Actor | None = None
        world.baton = self

    def acquire(self, blocking: bool = True) -> bool:
        self.world.point((lambda: self.holder is None) if blocking else None)
        if self.holder is None:
            self.holder = self.world.runs.current
            return True
        self.world.runs.meet("the relief thread drives when the owner comes back" if self.by_owner else "taken already")
        return False

    @property
    def by_owner(self) -> bool:
        return self.world.runs.current is self.world.me

    def release(self) -> None:
        self.world.point()
        assert self.holder is self.world.runs.current
        self.holder = None


class Queue:
    def __init__(self, world: World) -> None:
        self.world = world
        self.items: deque[bool | None] = deque()
        world.queues.append(self)

    def put(self, item: bool | None) -> None:
        self.world.point()
        self.items.append(item)
        self.world.runs.meet({True: "told to take over", False: "told to look", None: "told to end"}[item])

    def get(self, timeout: float | None = None) -> bool | None:
        self.world.point((lambda: bool(self.items)) if timeout is None else None)
        if not self.items:
            raise queue.Empty
        return self.items.popleft()


class Thread:
    def __init__(self, world: World, target: Callable[..., object], args: list[Any]) -> None:
        self.world, self.target, self.args = world, target, args
        self.ident: int | None = None

    def start(self) -> None:
        self.ident = 1
        self.actor = self.world.runs.spawn("relief", lambda: self.target(*self.args))

    def join(self) -> None:
        self.world.point(lambda: self.actor.done)


class Task:
    def __init__(self, loop: Loop, main: Generator[None, None, None]) -> None:
        self._main, self._done = main, False
        loop.call_soon(self.step)

    def step(self) -> None:
        try:
            self._main.send(None)
        except StopIteration:
            self._done = True

    def done(self) -> bool:
        return self._done

    def result(self) -> None:
        assert self._done


class Loop:
    """Of asyncio's loop, what is used here; it notices two threads in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ready: deque[Callable[[], object]] = deque()
        self.timers: list[tuple[float, Callable[[], object]]] = []
        self.now = 0.0
        self.driver: Actor | None = None
        self.task: Task
        self.closed = False
        world.loop = self

    def state(self) -> Hashable:
        task = hasattr(self, "task") and self.task.done()
        names = tuple(getattr(callback, "__qualname__", "") for callback in self.ready)
        return names, len(self.timers), self.now, self.driver and self.driver.name, self.closed, task

    def step(self) -> None:
        world, me = self.world, self.world.runs.current
        assert self.driver is None, "two threads drive the loop"
        assert world.baton.holder is me, "who drives the loop has the baton"
        assert world.running[me] is self and not self.closed
        self.driver = me
        world.point(lambda: bool(self.ready or self.timers))
        if not self.ready:
            self.now, callback = self.timers.pop()
            self.ready.append(callback)
        for _ in range(len(self.ready)):
            self.ready.popleft()()
        self.driver = None

    def call_soon(self, callback: Callable[[], object]) -> None:
        assert self.world.baton.holder is self.world.runs.current, "call_soon is for the thread that drives the loop"
        self.ready.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self.world.point()
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.ready.append(callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> Any:
        self.timers.append((when, callback))
        return SimpleNamespace(cancel=self.timers.clear)

    def time(self) -> float:
        return self.now

    def create_task(self, main: Generator[None, None, None]) -> Task:
        self.task = Task(self, main)
        return self.task


def set_up(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Let the code stand on these."""
    runs = world.runs

    def close() -> None:
        world.loop.closed = True

    def set_running(loop: object) -> None:
        world.running[runs.current] = loop

    Watched.world = world
    replaced: dict[str, object] = {
        "asyncio": SimpleNamespace(
            Runner=lambda debug, loop_factory: SimpleNamespace(get_loop=lambda: loop_factory(world), close=close)
        ),
        "queue": SimpleNamespace(SimpleQueue=lambda: Queue(world), Empty=queue.Empty),
        "threading": SimpleNamespace(
            Lock=lambda: Lock(world),
            Thread=lambda target, args, name: Thread(world, target, args),
            get_ident=lambda: runs.current,
        ),
        "failure": SimpleNamespace(run=lambda function: function()),
        "_Loop": Loop,
        "_SWAP": None,
        "_set_running_loop": set_running,
        "_get_running_loop": lambda: world.running.get(runs.current),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(shared_loop, name, value)
    monkeypatch.setattr(main_thread, "SharedLoop", Watched)
    monkeypatch.setattr(main_thread, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.mark.parametrize(
    ("tools", "helper", "met"),
    [
        ([short], False, {"told to look"}),
        ([inline], False, {"told to look"}),
        ([long], False, {"relieved", "the relief thread drives when the owner comes back"}),
        ([sends], False, {"the relief thread drives when the owner comes back"}),
        ([turns], False, {"relieved", "sent at once", "left to the relief thread"}),
        ([waits], False, set()),
        ([waits_in_vain], False, {"relieved"}),
        ([is_helped], True, {"told to take over"}),
        ([short], True, {"told to take over"}),
    ],
    ids=lambda value: "-".join(tool.__name__ for tool in value) if isinstance(value, list) else None,
)
def test_every_interleaving(
    monkeypatch: pytest.MonkeyPatch, tools: list[Callable[[World], None]], helper: bool, met: set[str]
) -> None:
    def scenario(runs: Interleavings) -> Callable[[], Hashable]:
        world = World(runs, tools, helper=helper)
        set_up(monkeypatch, world)
        return world.state

    # Where the relief thread stands says what its last signal was.
    runs = Interleavings(scenario, known={"signal"})
    runs.explore(most=MOST)
    print(f"{runs.states} states, {runs.steps} steps, {runs.runs} runs; met: {sorted(runs.met)}")
    assert {*met, "told to end"} <= runs.met
