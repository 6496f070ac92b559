"""One scripted worker: its process, connection and calls as coroutines; see :mod:`.scripted`."""

from __future__ import annotations

import contextlib
import inspect
import math
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc

from snakepit_trio.errors import RequestCancelled
from snakepit_trio.launch.base import ExitStatus, Output, WorkerSpec
from snakepit_trio.wire import codec, failures, frame_reading, frame_writing, frames
from snakepit_trio.wire.connection import RpcFailure
from snakepit_trio.wire.handshake_messages import HandshakeRequest, HandshakeResponse, ToolSpec
from snakepit_trio.wire.startup import Report

if TYPE_CHECKING:
    import ssl

    from .scripted import ScriptedWorkers

__all__ = ["Behaviour", "ScriptedWorker"]


class Behaviour:
    """The behaviour of scripted workers, drawn from one seed.

    Attributes:
        crash: The probability that a worker dies during a call, or between calls.
        deaf: The probability that a call ignores its cancellation.
        late: The probability that a cancelled call still answers with its result.
        start_failure: The probability that a worker does not start.
        delay: The longest time for which a frame is in transit, in seconds.
    """

    def __init__(self, seed: int, **chances: float) -> None:
        self.rng: random.Random = random.Random(seed)
        self.crash: float = chances.pop("crash", 0.0)
        self.deaf: float = chances.pop("deaf", 0.0)
        self.late: float = chances.pop("late", 0.0)
        self.start_failure: float = chances.pop("start_failure", 0.0)
        self.delay: float = chances.pop("delay", 0.0)
        if chances:
            raise TypeError(f"no such chances: {', '.join(chances)}")

    def chance(self, probability: float) -> bool:
        """Draw once."""
        return self.rng.random() < probability


#: Seconds. The time for which a leaving worker lets its calls run.
_LEAVE = 1.0


class _Silence:
    """The empty output of a scripted worker."""

    async def receive(self) -> bytes:
        return b""


class ScriptedWorker:
    """One worker: its process, its connection and its calls.

    Attributes:
        running: The running calls, at most as many as its threads.
        line: The calls that it has not begun.
    """

    def __init__(self, world: ScriptedWorkers, spec: WorkerSpec) -> None:
        self.world = world
        self.spec = spec
        world.pids += 1
        self.pid: int = world.pids
        self.running: dict[int, anyio.CancelScope] = {}
        self.line: deque[frames.Call] = deque()
        self.taken: set[int] = set()
        self.credits: dict[int, int] = {}
        self.room: dict[int, float] = {}
        self.streams: set[int] = set()
        self.credited: anyio.Event = anyio.Event()
        self.status: ExitStatus | None = None
        self.over: anyio.Event = anyio.Event()
        self.closed: bool = False
        self._leaving = anyio.Event()
        # The calls that must stop because the worker leaves, rather than because their callers have left.
        self._stopped: set[int] = set()
        self.on_message: Callable[[bytes], None] | None = None
        self.on_end: Callable[[int, str], None] | None = None
        self._outbox: list[Any] = []
        self._posted = anyio.Event()
        self._inbox: list[bytes] = []
        self._arrived = anyio.Event()
        self.stdout: Output = _Silence()
        self.stderr: Output = _Silence()
        self.tls: ssl.SSLContext | None = None
        self.waiting = ""

    # ---- the process -------------------------------------------------------------------------------

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

    def share(self) -> None:
        return None

    async def cpu_time(self) -> float | None:
        return 0.0

    async def wait(self) -> ExitStatus:
        await self.over.wait()
        assert self.status is not None
        return self.status

    def die(self, status: ExitStatus) -> None:
        if self.status is None:
            self.status = status
            self.over.set()
            self.close(f"died: {status}")

    def crash(self) -> None:
        """End the worker as a segmentation fault does."""
        self.die(ExitStatus(signal=11))

    def leave(self) -> None:
        """End the worker as a SIGTERM from outside does: it gives back calls that it has not begun, and ends after its
        running calls.
        """
        if not self._leaving.is_set():
            self._leaving.set()
            self.post(frames.Leaving())
            while self.line:
                self.post(frames.Reply(self.line.popleft().id, undone=frames.NOT_BEGUN))

    def freeze(self) -> None:
        """Stop all signs of life."""
        self.on_message = None

    def terminate(self) -> None:
        self.die(ExitStatus(code=0))

    def kill(self) -> None:
        self.die(ExitStatus(signal=9))

    async def aclose(self) -> None:
        self.kill()
        self.world.alive.pop(self, None)

    # ---- the connection ------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Transport frames both ways, in order, each after a delay."""
        try:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(self._carry_in, nursery)
                nursery.start_soon(self._carry_out)
                nursery.start_soon(self._stop_what_runs)
                if self.world.behaviour.chance(self.world.behaviour.crash):
                    nursery.start_soon(self._die_some_day)
                await self.over.wait()
                nursery.cancel_scope.cancel()
        finally:
            # The end of the process loses the frames that it has not sent.
            self._outbox.clear()
            self._inbox.clear()

    def close(self, reason: str = "closed") -> None:
        """End the worker's connection."""
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
        return bytes(
            HandshakeResponse(
                protocol_version=1,
                pid=self.pid,
                tools=self.offered(),
                threads=self.spec.threads,
                capabilities=["exchange", "prefetch"],
            )
        )

    def offered(self) -> list[ToolSpec]:
        """Return the tools of its handshake."""
        return [
            ToolSpec(
                name=name,
                parameters_schema="{}",
                idempotent=name in self.world.idempotent,
                streaming=_streams(function),
            )
            for name, function in self.world.tools.items()
        ]

    def rpc(self, path: str, *, on_message: Any, on_end: Any, timeout: float = math.inf) -> ScriptedWorker:
        if self.closed:
            raise RpcFailure(14, "closed")
        self.on_message, self.on_end = on_message, on_end
        return self

    @property
    def unsent(self) -> int:
        return 0

    def send(self, *pieces: bytes) -> None:
        if not self.closed:
            self._inbox.append(b"".join(pieces))
            self._arrived.set()

    # ---- what it does --------------------------------------------------------------------------------

    def post(self, frame: Any) -> None:
        if self.ended:
            return
        self._outbox.append(frame)
        self._posted.set()

    async def _carry_out(self) -> None:
        while True:
            while self._outbox:
                await anyio.sleep(self.world.behaviour.rng.uniform(0, self.world.behaviour.delay))
                frame = self._outbox.pop(0)
                if self.on_message is not None and not self.closed:
                    self.on_message(frame_writing.encode(frame))
            self.said_all()
            self._posted = anyio.Event()
            await self._posted.wait()

    def said_all(self) -> None:
        """End a leaving worker without running calls, once all its frames have arrived."""
        if self._leaving.is_set() and not self.running:
            self.die(ExitStatus(code=0))

    async def _stop_what_runs(self) -> None:
        await self._leaving.wait()
        await anyio.sleep(_LEAVE)
        for call_id, scope in self.running.items():
            if not scope.cancel_called and self.hears(call_id):
                self._stopped.add(call_id)
                scope.cancel()

    def hears(self, call_id: int) -> bool:
        """Return whether a call notices that it must stop; a generator always does at a yield."""
        return call_id in self.streams or not self.world.behaviour.chance(self.world.behaviour.deaf)

    async def _carry_in(self, nursery: anyio.abc.TaskGroup) -> None:
        while True:
            while self._inbox:
                await anyio.sleep(self.world.behaviour.rng.uniform(0, self.world.behaviour.delay))
                self._take(frame_reading.decode_host_frame(self._inbox.pop(0)), nursery)
            self._arrived = anyio.Event()
            await self._arrived.wait()

    def _take(self, frame: Any, nursery: anyio.abc.TaskGroup) -> None:
        match frame:
            case frames.Call() if self._leaving.is_set():
                self.post(frames.Reply(frame.id, undone=frames.NOT_BEGUN))
            case frames.Call():
                self.world.held = max(self.world.held, len(self.running) + len(self.line))
                self.line.append(frame)
                self._begin(nursery)
            case frames.Cancel():
                waiting = next((call for call in self.line if call.id == frame.id), None)
                if waiting is not None:
                    self.line.remove(waiting)
                    if frame.recall:
                        self.world.recalls += 1
                        self.post(frames.Reply(frame.id, undone=frames.NOT_BEGUN))
                    else:
                        error = failures.to_info(RequestCancelled("cancelled before it began"))
                        self.post(frames.Reply(frame.id, None, error))
                elif not frame.recall:
                    scope = self.running.get(frame.id)
                    if self.hears(frame.id) and scope is not None:
                        scope.cancel()
            case frames.Credit():
                if frame.id in self.credits:
                    self.credits[frame.id] += frame.chunks
                    self.room[frame.id] += frame.size
                    self.credited.set()
                    self.credited = anyio.Event()
            case frames.Ping():
                self.post(frames.Pong(frame.sequence, list(self.running), 1))
            case frames.Stop():
                self.die(ExitStatus(code=0))

    def _begin(self, nursery: anyio.abc.TaskGroup) -> None:
        """Begin waiting calls in order, as far as there are free threads."""
        while self.line and len(self.running) < self.spec.threads:
            call = self.line.popleft()
            self.taken.add(call.id)
            self.world.starts[call.id] += 1
            self.world.check_start(call)
            self.running[call.id] = anyio.CancelScope()
            self.credits[call.id] = call.credits
            self.room[call.id] = call.credit_bytes or math.inf
            if call.stream:
                self.streams.add(call.id)
            nursery.start_soon(self._run, call, nursery)

    async def _run(self, call: frames.Call, nursery: anyio.abc.TaskGroup) -> None:
        behaviour = self.world.behaviour
        params = codec.decode(call.payload)
        late = behaviour.chance(behaviour.late)
        reply = frames.Reply(call.id, codec.encode(None))
        with self.running[call.id]:
            try:
                reply = await self._perform(call, params)
            except Exception as exc:
                reply = frames.Reply(call.id, None, failures.describe_exception(exc, redact=str))
            if behaviour.chance(behaviour.crash):
                self.die(ExitStatus(signal=11))
                return
        if self.running[call.id].cancelled_caught and not late:
            reply = frames.Reply(call.id, undone=frames.STOPPED)
            if call.id not in self._stopped:
                reply = frames.Reply(call.id, None, failures.to_info(RequestCancelled("cancelled")))
        del self.running[call.id], self.credits[call.id], self.room[call.id]
        self.post(reply)
        self._begin(nursery)

    async def _perform(self, call: frames.Call, params: Any) -> frames.Reply:
        function = list(self.world.tools.values())[call.tool_index - 1]
        if not call.stream:
            result = function(**params)
            if inspect.isawaitable(result):
                result = await result
            return frames.Reply(call.id, codec.encode(result))
        async with contextlib.aclosing(_chunks(function(**params))) as chunks:
            async for chunk in chunks:
                while self.credits[call.id] <= 0 or self.room[call.id] <= 0:
                    await self.credited.wait()
                self.credits[call.id] -= 1
                payload = codec.encode(chunk)
                self.room[call.id] -= payload.size
                self.post(frames.Chunk(call.id, payload))
        return frames.Reply(call.id)

    async def _die_some_day(self) -> None:
        await anyio.sleep(self.world.behaviour.rng.expovariate(1.0))
        self.die(ExitStatus(signal=9))


def _streams(function: Callable[..., Any]) -> bool:
    return inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)


async def _chunks(generator: Any) -> AsyncGenerator[Any, None]:
    if inspect.isgenerator(generator):
        with contextlib.closing(generator):
            for chunk in generator:
                yield chunk
    else:
        async with contextlib.aclosing(generator):
            async for chunk in generator:
                yield chunk
