"""A scripted worker behind the wire interface: no process, no socket, and all time is the test's."""

from __future__ import annotations

import math
import os
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc

from snakepit_trio.config import PoolConfig
from snakepit_trio.errors import RequestCancelled
from snakepit_trio.launch.base import ExitStatus, Launcher, WorkerSpec
from snakepit_trio.launch.messages import Report
from snakepit_trio.observe.events import EventBus
from snakepit_trio.pool.crew import PoolParts
from snakepit_trio.pool.pool import Pool
from snakepit_trio.tools.serving import HostThreads
from snakepit_trio.tools.waits import Waits
from snakepit_trio.wire import codec, failures, frames
from snakepit_trio.wire.connection import RpcFailure, Wire
from snakepit_trio.wire.generated.snakepit.v1 import HandshakeRequest, HandshakeResponse, ToolSpec

__all__ = ["Behaviour", "ScriptedWorker", "World"]


TOOLS = ["work", "again", "stream"]


class Behaviour:
    """What workers do, drawn from one seed.

    Attributes:
        crash: How probable it is that a worker dies under a call, or between calls.
        deaf: How probable it is that a call ignores its cancel.
        late: How probable it is that a cancelled call answers with its result all the same.
        start_failure: How probable it is that a worker does not start.
        delay: The longest a frame is under way, in seconds.
    """

    def __init__(self, seed: int, **chances: float) -> None:
        self.rng = random.Random(seed)
        self.crash = chances.get("crash", 0.03)
        self.deaf = chances.get("deaf", 0.1)
        self.late = chances.get("late", 0.2)
        self.start_failure = chances.get("start_failure", 0.05)
        self.delay = chances.get("delay", 0.002)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability


class ScriptedWorker:
    """One worker: its process, its connection and its calls.

    Attributes:
        running: The calls that it is running, never more than its threads.
        line: The calls that it has not begun.
        starts: How often each call was started, over all workers.
    """

    def __init__(self, world: World, spec: WorkerSpec) -> None:
        self.world = world
        self.spec = spec
        world.pids += 1
        self.pid = world.pids
        self.running: dict[int, anyio.CancelScope] = {}
        self.line: deque[frames.Call] = deque()
        self.taken: set[int] = set()
        self.credits: dict[int, int] = {}
        self.streams: set[int] = set()
        self.credited = anyio.Event()
        self.status: ExitStatus | None = None
        self.over = anyio.Event()
        self.closed = False
        self.on_message: Callable[[bytes], None] | None = None
        self.on_end: Callable[[int, str], None] | None = None
        self._outbox: list[Any] = []
        self._posted = anyio.Event()
        self._inbox: list[bytes] = []
        self._arrived = anyio.Event()
        self._fds: list[int] = []
        for _ in range(2):
            read, write = os.pipe()
            os.close(write)
            os.set_blocking(read, False)
            self._fds.append(read)

    # ---- the process -------------------------------------------------------------------------------

    @property
    def stdout(self) -> int:
        return self._fds[0]

    @property
    def stderr(self) -> int:
        return self._fds[1]

    async def report(self) -> Report:
        await anyio.sleep(self.world.behaviour.rng.uniform(0, 0.05))
        if self.world.behaviour.chance(self.world.behaviour.start_failure):
            self.die(ExitStatus(code=1))
            return Report(code="worker_startup", message="RuntimeError: scripted")
        return Report(address=f"unix:{self.spec.worker_id}", pid=self.pid)

    @property
    def ended(self) -> bool:
        return self.status is not None

    def begun(self, call_id: int) -> bool:
        return call_id in self.taken

    async def wait(self) -> ExitStatus:
        await self.over.wait()
        assert self.status is not None
        return self.status

    def die(self, status: ExitStatus) -> None:
        if self.status is None:
            self.status = status
            self.over.set()
            self.close(f"died: {status}")

    def terminate(self) -> None:
        self.die(ExitStatus(code=0))

    def kill(self) -> None:
        self.die(ExitStatus(signal=9))

    async def aclose(self) -> None:
        self.kill()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self.world.alive.discard(self)

    # ---- the connection ------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Carry frames both ways, each after a while, in order."""
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(self._carry_in, nursery)
            nursery.start_soon(self._carry_out)
            if self.world.behaviour.chance(self.world.behaviour.crash):
                nursery.start_soon(self._die_some_day)
            await self.over.wait()
            nursery.cancel_scope.cancel()

    def close(self, reason: str = "closed") -> None:
        self.closed = True
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(14, reason)

    async def unary(self, path: str, request: bytes, *, timeout: float = math.inf) -> bytes:
        if path.endswith("Check"):
            return b"\x08\x01"
        await anyio.sleep(self.world.behaviour.rng.uniform(0, self.world.behaviour.delay))
        if self.closed:
            raise RpcFailure(14, "closed")
        HandshakeRequest.parse(request)
        tools = [
            ToolSpec(name=name, parameters_schema="{}", idempotent=name == "again", streaming=name == "stream")
            for name in TOOLS
        ]
        return bytes(
            HandshakeResponse(
                protocol_version=1, pid=self.pid, tools=tools, threads=self.spec.threads, capabilities=["prefetch"]
            )
        )

    def rpc(self, path: str, *, on_message: Any, on_end: Any, timeout: float = math.inf) -> ScriptedWorker:
        if self.closed:
            raise RpcFailure(14, "closed")
        self.on_message, self.on_end = on_message, on_end
        return self

    def send(self, message: bytes) -> None:
        if not self.closed:
            self._inbox.append(message)
            self._arrived.set()

    # ---- what it does --------------------------------------------------------------------------------

    def post(self, frame: Any) -> None:
        self._outbox.append(frame)
        self._posted.set()

    async def _carry_out(self) -> None:
        while True:
            while self._outbox:
                await anyio.sleep(self.world.behaviour.rng.uniform(0, self.world.behaviour.delay))
                frame = self._outbox.pop(0)
                if self.on_message is not None and not self.closed:
                    self.on_message(frames.encode(frame))
            self._posted = anyio.Event()
            await self._posted.wait()

    async def _carry_in(self, nursery: anyio.abc.TaskGroup) -> None:
        while True:
            while self._inbox:
                await anyio.sleep(self.world.behaviour.rng.uniform(0, self.world.behaviour.delay))
                self._take(frames.decode_host_frame(self._inbox.pop(0)), nursery)
            self._arrived = anyio.Event()
            await self._arrived.wait()

    def _take(self, frame: Any, nursery: anyio.abc.TaskGroup) -> None:
        match frame:
            case frames.Call():
                self.world.held = max(self.world.held, len(self.running) + len(self.line))
                self.line.append(frame)
                self._begin(nursery)
            case frames.Cancel():
                waiting = next((call for call in self.line if call.id == frame.id), None)
                if waiting is not None:
                    self.line.remove(waiting)
                    error = frames.ErrorInfo(frames.RECALLED)
                    if frame.recall:
                        self.world.recalls += 1
                    else:
                        error = failures.to_info(RequestCancelled("cancelled before it began"))
                    self.post(frames.Reply(frame.id, None, error))
                elif not frame.recall:
                    scope = self.running.get(frame.id)
                    # At a yield every generator listens.
                    deaf = frame.id not in self.streams and self.world.behaviour.chance(self.world.behaviour.deaf)
                    if scope is not None and not deaf:
                        scope.cancel()
            case frames.Credit():
                if frame.id in self.credits:
                    self.credits[frame.id] += frame.chunks
                    self.credited.set()
                    self.credited = anyio.Event()
            case frames.Ping():
                self.post(frames.Pong(frame.sequence, list(self.running), 1))
            case frames.Stop():
                self.die(ExitStatus(code=0))

    def _begin(self, nursery: anyio.abc.TaskGroup) -> None:
        """Begin what there are threads for, in the order in which it came."""
        while self.line and len(self.running) < self.spec.threads:
            call = self.line.popleft()
            self.taken.add(call.id)
            self.world.starts[call.id] += 1
            assert self.world.starts[call.id] == 1 or TOOLS[call.tool_index - 1] == "again", "run twice"
            self.running[call.id] = anyio.CancelScope()
            self.credits[call.id] = call.credits
            if call.stream:
                self.streams.add(call.id)
            nursery.start_soon(self._run, call, nursery)

    async def _run(self, call: frames.Call, nursery: anyio.abc.TaskGroup) -> None:
        behaviour = self.world.behaviour
        params = codec.decode(call.payload)
        late = behaviour.chance(behaviour.late)
        reply = frames.Reply(call.id, codec.encode(params))
        with self.running[call.id]:
            if call.stream:
                for number in range(params["n"]):
                    while not self.credits[call.id]:
                        await self.credited.wait()
                    self.credits[call.id] -= 1
                    await anyio.sleep(params["seconds"])
                    self.post(frames.Chunk(call.id, codec.encode(number)))
                reply = frames.Reply(call.id)
            else:
                await anyio.sleep(params["seconds"])
            if behaviour.chance(behaviour.crash):
                self.die(ExitStatus(signal=11))
                return
        if self.running[call.id].cancelled_caught and not late:
            reply = frames.Reply(call.id, None, failures.to_info(RequestCancelled("cancelled")))
        del self.running[call.id], self.credits[call.id]
        self.post(reply)
        self._begin(nursery)

    async def _die_some_day(self) -> None:
        await anyio.sleep(self.world.behaviour.rng.expovariate(1.0))
        self.die(ExitStatus(signal=9))


class World(Launcher, Wire):
    """Everything below the pool: launcher and wire at once."""

    name = "scripted"

    def __init__(self, seed: int, **chances: float) -> None:
        self.behaviour = Behaviour(seed, **chances)
        self.pids = 0
        self.alive: set[ScriptedWorker] = set()
        self.starts: Counter[int] = Counter()
        self.events = EventBus()
        # The most calls that one worker held when it got another; and how many were taken back.
        self.held = 0
        self.recalls = 0

    async def __aenter__(self) -> World:  # type: ignore[override]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert not self.alive

    async def start(self, spec: WorkerSpec) -> ScriptedWorker:
        worker = ScriptedWorker(self, spec)
        self.alive.add(worker)
        return worker

    async def connect(self, address: str, *, token: str, max_message: int) -> Any:
        (found,) = [w for w in self.alive if f"unix:{w.spec.worker_id}" == address]
        if found.status is not None:
            raise OSError("nobody listens")
        return found

    def pool(self, **options: Any) -> Pool:
        """A pool over this world, not yet open."""
        import itertools

        config = PoolConfig(adapter="scripted", **options)
        waits = Waits()
        parts = PoolParts(
            run_id="run",
            token="t",
            socket_dir=None,
            backend="trio",
            launcher=self,
            wire=self,
            events=self.events,
            ids=itertools.count(1),
            redact=str,
            registries=lambda _: (),
            waits=waits,
            host_threads=HostThreads(4, waits),
            starting=anyio.Semaphore(4),
        )
        return Pool(config, parts, None)  # type: ignore[arg-type]
