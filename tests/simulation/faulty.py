"""Workers in memory whose wire and process fail at the frames that a scenario names."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.abc
import numpy as np

import snakepit_trio as sp
from snakepit_trio.launch.base import ExitStatus, WorkerSpec
from snakepit_trio.testing.scripted import ScriptedWorker, ScriptedWorkers
from snakepit_trio.wire import codec, frame_reading, frame_writing, frames
from snakepit_trio.wire.handshake_messages import ToolSpec
from snakepit_trio.wire.startup import Report

from .scenario import Fault, Scenario
from .segments import WorkerMemory

__all__ = ["FaultyWorkers"]


#: For how long a tool may keep its worker from answering anything, in seconds: longer than any silence is borne.
_GRIND = 1.5


async def work(**params: Any) -> dict[str, Any]:
    if params.get("fails"):
        raise OSError("it fails")
    if params.get("deaf"):
        with anyio.CancelScope(shield=True):
            await anyio.sleep(params["seconds"])
    else:
        await anyio.sleep(params["seconds"])
    if isinstance(params.get("data"), np.ndarray) and params["number"] % 2:
        # Memory of its own, and not what it was given.
        params["data"] = params["data"].copy()
    return params


@sp.tool(idempotent=True)
async def again(**params: Any) -> dict[str, Any]:
    return await work(**params)


async def stream(seconds: float, n: int, **_: Any) -> AsyncIterator[int]:
    for number in range(n):
        await anyio.sleep(seconds)
        yield number


async def nested(**params: Any) -> None:
    raise AssertionError("it is run by the worker, which knows its call")


class FaultyWorker(ScriptedWorker):
    """One worker; its connection has a pace of its own, so that connections overtake each other and frames never do."""

    world: FaultyWorkers

    def __init__(self, world: FaultyWorkers, spec: WorkerSpec, number: int) -> None:
        super().__init__(world, spec)
        self.number = number
        self.rng = random.Random(f"{world.scenario.seed}:{number}")
        self.faults = [fault for fault in world.scenario.faults if fault.worker == number]
        self.delay = world.scenario.delay * self.rng.choice([0.1, 1, 1, 3])
        self.frames = 0
        #: The kind of the frame that is carried just now.
        self.at = ""
        self.sending = 0
        self.muted = False
        #: It answers nothing, and is at work, until then.
        self.grinds_until = 0.0
        self.used = 0.0
        self.looked_at = 0.0
        # When the host has said last that nobody waits for a call, from the moment in which it is sent.
        self.told_to_cancel: dict[int, float] = {}
        self.stuck: set[int] = set()
        self.host_calls: dict[int, tuple[anyio.Event, list[frames.HostReply]]] = {}
        self.memory = WorkerMemory(spec.shm_limit)

    def fault(self, *kinds: str) -> Fault | None:
        """The fault that is to happen now, if any of these kinds is; it is written down and never happens again."""
        for fault in self.faults:
            if fault.kind in kinds and fault.frame <= self.frames and fault.at in ("", self.at):
                self.faults.remove(fault)
                self.world.note(f"fault {fault.number}: {fault.kind} of worker #{self.number} at frame {self.frames}")
                self.world.happened.append(fault.kind)
                if fault.frame:
                    self.world.happened_at[self.at] += 1
                return fault
        return None

    def forgotten(self) -> int:
        """The id of a call that it had and has no more, or of one that never was."""
        held = {*self.running, *(call.id for call in self.line)}
        held.update(frame.id for frame in self._outbox if isinstance(frame, frames.Reply))
        return min((id for id in self.taken if id not in held and id != self.sending), default=1 << 40)

    # ---- the process -------------------------------------------------------------------------------

    async def cpu_time(self) -> float | None:
        await anyio.sleep(self.rng.uniform(0, 0.02))
        now = anyio.current_time()
        self.used += max(0.0, min(now, self.grinds_until) - self.looked_at)
        self.looked_at = now
        return self.used

    async def report(self) -> Report:
        await anyio.sleep(self.rng.uniform(0, 0.05))
        if self.fault("start_hangs"):
            await anyio.sleep(1000)
        if self.fault("start_slow"):
            await anyio.sleep(0.9)
        if self.fault("start_fails"):
            self.die(ExitStatus(code=1))
            return Report(code="worker_startup", message="RuntimeError: scripted")
        if self.fault("start_dies"):
            self.die(ExitStatus(signal=11))
            return Report()
        return Report(address=f"unix:{self.spec.worker_id}", pid=self.pid)

    def offered(self) -> list[ToolSpec]:
        more = [ToolSpec(name="more", parameters_schema="{}")] if self.fault("odd") else []
        return [*super().offered(), *more]

    def share(self) -> int | None:
        return self.memory.share()

    def die(self, status: ExitStatus) -> None:
        super().die(status)
        self.memory.vanish()

    # ---- the wire ----------------------------------------------------------------------------------

    def post(self, frame: Any) -> None:
        payload = getattr(frame, "payload", None)
        if payload is not None:
            frame.payload = self.memory.lend(payload)
        super().post(frame)

    def send(self, *pieces: bytes) -> None:
        message = b"".join(pieces)
        frame = frame_reading.decode_host_frame(message)
        if isinstance(frame, frames.Cancel) and not frame.recall:
            self.told_to_cancel[frame.id] = anyio.current_time()
        super().send(message)

    def deliver(self, data: bytes) -> None:
        """Give the host one message; what it can't read ends the connection, as the pipe of the real wire does it."""
        if self.on_message is None or self.closed:
            return
        try:
            self.on_message(data)
        except ValueError as exc:
            self.world.note(f"the host gave up the connection of worker #{self.number}: {exc}")
            self.close(str(exc))

    async def _carry_out(self) -> None:
        while True:
            while self._outbox:
                await anyio.sleep(self.rng.uniform(0, self.delay))
                await anyio.sleep_until(self.grinds_until)
                frame = self._outbox.pop(0)
                self.sending = getattr(frame, "id", 0)
                self.frames += 1
                self.at = type(frame).__name__
                data = frame_writing.encode(frame)
                reply = isinstance(frame, frames.Reply)
                if self.muted or self.fault("mute"):
                    self.muted = True
                    continue
                if self.fault("stall"):
                    await anyio.sleep(0.3)
                if self.fault("leave"):
                    self.leave()
                if self.fault("crash_before"):
                    self.crash()
                elif self.fault("cut"):
                    self.close("reset in the middle of a frame")
                elif self.fault("torn"):
                    self.deliver(data[: len(data) // 2] + b"\xff")
                elif self.fault("garbage"):
                    self.deliver(b"\xff" * 7)
                elif self.fault("stray"):
                    self.deliver(frame_writing.encode(frames.Reply(self.forgotten(), codec.encode(None))))
                self.deliver(data)
                if reply and self.fault("twice"):
                    self.deliver(data)
                if self.fault("crash_after"):
                    self.crash()
                del frame, data
            self.said_all()
            self._posted = anyio.Event()
            await self._posted.wait()

    async def _carry_in(self, nursery: anyio.abc.TaskGroup) -> None:
        while True:
            while self._inbox:
                await anyio.sleep(self.rng.uniform(0, self.delay))
                await anyio.sleep_until(self.grinds_until)
                frame = frame_reading.decode_host_frame(self._inbox.pop(0))
                self.frames += 1
                self.at = type(frame).__name__
                if self.fault("leave"):
                    self.leave()
                if self.fault("crash_before"):
                    self.crash()
                    return
                self._take(frame, nursery)
                # What it holds is looked at by nobody here.
                del frame
                if self.fault("crash_after"):
                    self.crash()
                    return
            self._arrived = anyio.Event()
            await self._arrived.wait()

    def _take(self, frame: Any, nursery: anyio.abc.TaskGroup) -> None:
        payload = getattr(frame, "payload", None)
        if payload is not None:
            frame.payload = self.memory.borrow(payload)
        if isinstance(frame, frames.HostReply):
            waiting = self.host_calls.get(frame.id)
            if waiting is not None:
                waiting[1].append(frame)
                waiting[0].set()
            return
        if (
            isinstance(frame, frames.Call)
            and self._tool(frame) != "nested"
            and codec.decode(frame.payload).get("stuck")
        ):
            self.stuck.add(frame.id)
        super()._take(frame, nursery)

    def hears(self, call_id: int) -> bool:
        return call_id not in self.stuck and super().hears(call_id)

    # ---- its calls ---------------------------------------------------------------------------------

    def _tool(self, call: frames.Call) -> str:
        return list(self.world.tools)[call.tool_index - 1]

    async def _perform(self, call: frames.Call, params: Any) -> frames.Reply:
        if params.get("grind") and self._tool(call) != "nested":
            self.grinds_until = anyio.current_time() + _GRIND
            await anyio.sleep(_GRIND)
        if params.get("lethal") and self._tool(call) != "nested":
            self.crash()
            await anyio.sleep_forever()
        if self._tool(call) != "nested":
            return await super()._perform(call, params)
        number = self.world.next_host_call()
        event, replies = self.host_calls[number] = anyio.Event(), []
        try:
            pool, *further = params["path"]
            inner = {key: value for key, value in params.items() if key not in ("tool", "path")}
            if further:
                inner |= {"tool": params["tool"], "path": further}
            asked = {"params": inner, "tool": "nested" if further else params["tool"], "pool": pool}
            self.post(frames.HostCall(number, call.id, "ask", codec.encode(asked)))
            await event.wait()
        except BaseException:
            self.post(frames.HostCancel(number))
            raise
        finally:
            del self.host_calls[number]
        (reply,) = replies
        return frames.Reply(call.id, reply.payload, reply.error)


class FaultyWorkers(ScriptedWorkers):
    """Launcher and wire of one scenario."""

    def __init__(self, scenario: Scenario, note: Callable[[str], object]) -> None:
        super().__init__({"work": work, "again": again, "stream": stream, "nested": nested}, seed=scenario.seed)
        self.scenario = scenario
        self.note = note
        #: The kinds of the faults that have happened.
        self.happened: list[str] = []
        #: How many of them there were at each kind of frame.
        self.happened_at: Counter[str] = Counter()
        #: What the workers did that must not be, found outside of the host.
        self.wrong: list[str] = []
        self._started = 0
        self._host_calls = 0

    def next_host_call(self) -> int:
        self._host_calls += 1
        return self._host_calls

    def check_start(self, call: frames.Call) -> None:
        name = list(self.tools)[call.tool_index - 1]
        if self.starts[call.id] > 1 and name not in self.idempotent:
            self.wrong.append(f"call {call.id} of {name} was run twice")

    async def start(self, spec: WorkerSpec) -> FaultyWorker:
        self._started += 1
        worker = FaultyWorker(self, spec, self._started)
        self.alive[worker] = None
        if worker.fault("launch_fails"):
            await worker.aclose()
            raise sp.WorkerStartupError("the template is gone", details={"reason": "scripted"})
        return worker

    async def connect(self, address: str, **options: Any) -> Any:
        found = await super().connect(address, **options)
        if found.fault("connect_fails"):
            raise OSError("refused")
        return found
