"""The exchange of a worker: the frames from its host, the calls that they begin, the frames that it sends, and its end.

Everything runs in the I/O thread's event loop, except :meth:`Exchange._send` and :meth:`Exchange.wait`. Frames are
distinguished by their exact type, because ``isinstance`` takes several times as long for msgspec's classes, which have
a metaclass.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from snakepit_trio._platform import resident_memory
from snakepit_trio.errors import SnakepitError, StreamingUnsupported, ToolNotFound
from snakepit_trio.wire import failures, frame_reading, frame_writing, frames
from snakepit_trio.wire.http2.grpc_server import GRPCError, Status, stream_below
from snakepit_trio.wire.http2.pipe import FramePipe
from snakepit_trio.wire.memory import Budget, SharedMemory
from snakepit_trio.wire.memory_handoff import open_offered

from .call import Call, Channel, late
from .failure import fatal
from .host_calls import HostCalls

if TYPE_CHECKING:
    from snakepit_trio.wire.begun import BegunTable
    from snakepit_trio.wire.startup import Boot

    from .runners import Runner
    from .shared_loop import SharedLoop
    from .toolbox import Tool

__all__ = ["Exchange"]

#: The number of frames that may wait for the I/O thread; with as many waiting, events are dropped.
_EVENTS_WAITING = 1000
#: Events are dropped while more bytes than this wait for a slow host.
_EVENTS_UNSENT = 1024 * 1024
#: Chunks or events are sent together up to this number, or after this number of seconds.
_TOGETHER, _APART = 32, 0.0005


class Exchange:
    """The calls that a worker holds, and the pipe to its host.

    Args:
        boot: The worker's boot message.
        tools: The tools that it offers.
        runner: Runs the calls.
        on_stop: Called once, when the host has asked for the end or is gone.
        on_drained: Called once, when no call is left after that.
        marks: The begun table of the exchange's calls, in the file that also holds large values.
        shared: The loop, if the thread that runs the tools drives it too.

    Attributes:
        calls: The calls by number, including those of plain RPCs.
        host_calls: Their calls to the host.
        met: Whether a host has connected; a host that makes plain calls opens no exchange.
        stopping: Whether no more calls are accepted.
        host_lost: Whether the exchange has ended without a message from the host.
    """

    def __init__(
        self,
        boot: Boot,
        tools: list[Tool],
        runner: Runner,
        *,
        on_stop: Callable[[], None],
        on_drained: Callable[[], None],
        marks: BegunTable,
        shared: SharedLoop | None,
    ) -> None:
        self._boot = boot
        self._tools = tools
        self._by_name = {tool.name: tool for tool in tools}
        self._runner = runner
        self._on_stop = on_stop
        self._on_drained: Callable[[], None] | None = on_drained
        self._loop = asyncio.get_running_loop()
        self._pipe: FramePipe | None = None
        self.calls: dict[int, Call] = {}
        self._shared = shared
        self.host_calls: HostCalls = HostCalls(runner.portal, self.wait)
        self._outbox: deque[frames.Frame] = deque()
        self._waking = False
        self._flushing = False
        self._flushed_at = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        self.met = False
        self.stopping: bool = False
        self._memory = SharedMemory("o", marks.share, Budget(boot.shm_limit), boot.max_payload)
        self._channel = Channel(
            send=self._send,
            wait=self.wait,
            begin=marks.begin,
            lend=self._memory.lend,
            host_calls=self.host_calls,
            prefix="",
            worker_id=boot.worker_id,
            limit=boot.max_payload,
            unserializable=boot.unserializable,
        )
        self.host_lost: bool = False

    def name_requests(self, prefix: str) -> None:
        """Set the prefix of the host's request ids; fixed once the exchange is open."""
        if self._pipe is None:
            self._channel.prefix = prefix

    def share_memory(self, pid: int, fd: int, proof: bytes) -> bool:
        """Use the file that the host offers, if this is the host's machine. Called if the host can't know whether it is.

        The inherited file is not the host's then.
        """
        if self._pipe is not None:
            return False
        open_it = functools.partial(open_offered, pid, fd, proof)
        found = open_it()
        if found is not None:
            os.close(found)
        share = None if found is None else open_it
        self._memory = SharedMemory("o", share, Budget(self._boot.shm_limit), self._boot.max_payload)
        self._channel.lend = self._memory.lend
        return found is not None

    async def serve(self, stream: Any) -> None:
        """Serve the exchange on this stream until it ends; the worker ends with it. A cancellation ends it too.

        Raises:
            GRPCError: The worker already has a host, or is stopping.
        """
        if self._pipe is not None or self.stopping:
            raise GRPCError(Status.FAILED_PRECONDITION, "this worker has its host already")
        closed = asyncio.Event()
        self._pipe = FramePipe(
            stream_below(stream),
            on_message=self._on_message,
            on_close=lambda reason: closed.set(),
            max_message=self._boot.max_payload + frames.FRAME_OVERHEAD,
            call_soon=self._call_soon,
        )
        await stream.send_initial_metadata()
        self._pipe.start()
        try:
            await closed.wait()
        finally:
            self._lose()

    # ---- what arrives --------------------------------------------------------------------------------

    def _on_message(self, message: bytes) -> None:
        frame: Any = frame_reading.decode_host_frame(message)
        kind = type(frame)
        if (kind is frames.Call or kind is frames.HostReply) and frame.payload is not None and frame.payload.buffers:
            frame.payload = self._memory.borrow(frame.payload)
        if kind is frames.Call:
            self._on_call(frame)
        elif kind is frames.Credit:
            call = self.calls.get(frame.id)
            if call is not None:
                call.credit(frame.chunks, frame.size)
        elif kind is frames.Cancel:
            self._on_cancel(frame)
        elif kind is frames.Ping:
            self._reply_to_ping(frame)
        elif kind is frames.HostReply:
            self.host_calls.resolve(frame)
        elif kind is frames.Stop:
            self.stop(frame.grace_us / 1e6, asked=True)

    def _on_call(self, frame: frames.Call) -> None:
        if self.stopping:
            self._write(frames.Reply(frame.id, undone=frames.NOT_BEGUN))
            return
        try:
            if frame.id in self.calls:
                raise ValueError(f"call {frame.id} is under way already")
            tool = self.tool_for(frame)
        except SnakepitError as exc:
            self._write(frames.Reply(frame.id, None, failures.to_info(exc)))
            return
        call = self.calls[frame.id] = Call(frame, tool, self._channel, frame.timeout_us / 1e6 or None)
        if tool.options.inline and self._shared is None and len(self.calls) <= self._boot.threads:
            self._run_inline(call)
            return
        self._runner.submit(call)
        if (
            call.deadline is not None
            and len(self.calls) > self._boot.threads
            and (self._sweeper is None or self._sweeper.when() > call.deadline)
            and (self._shared is None or self._shared.in_user_code)
        ):
            self.sweep()

    def _on_cancel(self, frame: frames.Cancel) -> None:
        call = self.calls.get(frame.id)
        if call is None:
            return
        # A call that has not begun is answered at once, so that its place is free without waiting for others.
        if call.claim():
            call.cancelled = not frame.recall
            call.withdraw()
        elif not frame.recall:
            call.cancel()

    def sweep(self) -> None:
        """Answer the calls that have waited until their deadline, now and after the next deadline."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        waiting = [
            (call, call.deadline) for call in self.calls.values() if call.deadline is not None and call.unclaimed
        ]
        now = time.monotonic()
        for call, deadline in waiting:
            if deadline <= now and call.claim():
                call.refuse(late())
        following = min((deadline for _, deadline in waiting if deadline > now), default=None)
        if following is not None:
            self._sweeper = self._loop.call_at(following, self.sweep)

    def _run_inline(self, call: Call) -> None:
        """Run an inline tool in this thread; its reply needs no wake-up."""
        waking, self._waking = self._waking, True
        try:
            self._runner.run_sync(call)
        finally:
            self._waking = waking
            self._drain()

    def tool_for(self, frame: frames.Call) -> Tool:
        """Return the tool of a call.

        Raises:
            ToolNotFound: There is no such tool.
            StreamingUnsupported: A stream was requested from a tool with one result, or one result from a streaming
                tool.
        """
        if frame.tool_index:
            tool = self._tools[frame.tool_index - 1] if frame.tool_index <= len(self._tools) else None
        else:
            tool = self._by_name.get(frame.tool)
        if tool is None:
            name = frame.tool or f"number {frame.tool_index}"
            raise ToolNotFound(f"there is no tool {name!r}", details={"tool": name})
        if tool.kind.streaming != frame.stream:
            how = "use a streaming call" if tool.kind.streaming else "make it a generator to stream from it"
            raise StreamingUnsupported(
                f"{tool.name!r} gives {'a stream' if tool.kind.streaming else 'one result'}: {how}",
                details={"tool": tool.name, "streaming": tool.kind.streaming},
            )
        return tool

    def _reply_to_ping(self, ping: frames.Ping) -> None:
        self._write(
            frames.Pong(ping.sequence, list(self.calls), resident_memory(os.getpid()), int(self._runner.lag() * 1e6))
        )

    # ---- what is sent --------------------------------------------------------------------------------

    def _send(self, frame: frames.Frame) -> None:
        """Send a frame from any thread. Many frames cost one wake-up of the I/O thread."""
        kind = type(frame)
        if len(self._outbox) >= _EVENTS_WAITING and kind is frames.Emit:
            return
        self._outbox.append(frame)
        if not self._waking:
            self._waking = True
            try:
                if self._shared is None:
                    self._loop.call_soon_threadsafe(self._drain)
                else:
                    self._shared.poke(self._drain)
            except Exception as exc:
                if not self._loop.is_closed():
                    # Not the tool's failure, because its answer may already be in the outbox.
                    fatal(exc)
                # The host is gone, and the frame has no receiver.
                self._waking = False
                self._outbox.clear()
        if (
            (kind is frames.Chunk or kind is frames.Emit)
            and self._shared is not None
            and (len(self._outbox) >= _TOGETHER or time.monotonic() - self._flushed_at > _APART)
            and self._shared.is_owner()
        ):
            # The first is sent at once, and quickly following ones together.
            self._shared.turn()

    def wait(self, condition: Callable[[], bool], until: float | None) -> bool:
        """In a tool, drive the loop until the condition holds or the time has come, if this thread may. Returns whether it
        may.
        """
        if self._shared is None or not self._shared.is_owner():
            return False
        self._shared.wait(condition, until)
        return True

    def _call_soon(self, callback: Callable[[], None]) -> None:
        # Frames sent during a flush leave with it.
        if not self._flushing:
            self._loop.call_soon(callback)

    def _drain(self) -> None:
        # Cleared first: a frame appended from now on is either seen below or wakes this thread again.
        self._waking = False
        outbox = self._outbox
        while outbox:
            self._write(outbox.popleft())

    def _write(self, frame: frames.Frame) -> None:
        if type(frame) is frames.Reply:
            self.calls.pop(frame.id, None)
        elif type(frame) is frames.Emit and self._pipe is not None and self._pipe.unsent > _EVENTS_UNSENT:
            return
        if self._pipe is not None:
            self._pipe.send(*frame_writing.encode_pieces(frame))
        if self.stopping:
            self.note_drained()

    # ---- the end ---------------------------------------------------------------------------------------

    @property
    def abandoned(self) -> bool:
        """Whether no host is connected."""
        return self._pipe is None

    def stop(self, grace: float, *, asked: bool = False) -> None:
        """Accept no more calls; let running ones end within the grace, then stop them.

        Args:
            grace: Seconds.
            asked: Whether the host has requested it. Otherwise the host is informed, and gets back at once the calls
                that have not begun.
        """
        if self.stopping:
            return
        self.stopping = True
        self._on_stop()
        if not asked:
            self._write(frames.Leaving())
            self._give_back()
        if grace > 0:
            self._loop.call_later(grace, self._stop_all)
        else:
            self._stop_all()
        self.note_drained()

    def stop_unmet(self) -> None:
        """Stop, unless a host has connected by now."""
        if not self.met:
            self.stop(0.0)

    def _lose(self) -> None:
        self._pipe = None
        self.host_lost = not self.stopping
        self.stop(0.0)
        self._stop_all()

    def _give_back(self) -> None:
        for call in list(self.calls.values()):
            if call.claim():
                call.withdraw()

    def _stop_all(self) -> None:
        self._give_back()
        for call in list(self.calls.values()):
            call.cancel(stopped=True)

    def note_drained(self) -> None:
        """Handle the end of a call, which may be the last before the end."""
        if self.stopping and not self.calls and self._on_drained is not None:
            on_drained, self._on_drained = self._on_drained, None
            on_drained()

    def flush(self) -> None:
        """Write what the tools have left to be sent."""
        if self._outbox:
            self._flushing = True
            try:
                self._drain()
                if self._pipe is not None:
                    self._pipe.flush()
            finally:
                self._flushing = False
                self._flushed_at = time.monotonic()
