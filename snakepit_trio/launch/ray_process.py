"""The host's handle of a worker on a node of a Ray cluster, through the actor that started it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import anyio
import ray
from ray.exceptions import RayError

from snakepit_trio.wire.begun import begun_in

from .base import ExitStatus, Report, WorkerSpec
from .futures import settled
from .handle import Handle
from .ray_actor import Placed

if TYPE_CHECKING:
    import ssl

__all__ = ["RayProcess", "end_actor", "words_of"]

#: Seconds. The time in which an actor must report the end of a worker that it was told to kill.
_ANSWER = 2.0
_BECAUSE = re.compile(r"The actor (?:died because|is dead because) (.+)")


class _Output:
    """The output of a worker, through its actor."""

    def __init__(self, actor: Any, stream: str) -> None:
        self._actor = actor
        self._stream = stream

    async def receive(self) -> bytes:
        try:
            return bytes(await _result(_call(self._actor.receive, self._stream)))
        except RayError:
            return b""


class RayProcess(Handle):
    """A worker on a node; see :class:`snakepit_trio.launch.base.WorkerProcess`.

    Args:
        actor: The actor, which Ray may not have placed yet.
        spec: The worker's spec.
        tls: The host's TLS context.
        asked: A description of the requested resources.
        on_end: Called once, when nothing of it is left.
    """

    def __init__(
        self, actor: Any, spec: WorkerSpec, tls: ssl.SSLContext, asked: str, on_end: Callable[[RayProcess], None]
    ) -> None:
        self.pid: int = 0
        self.node: str = ""
        self.tls = tls
        self.stdout: _Output = _Output(actor, "stdout")
        self.stderr: _Output = _Output(actor, "stderr")
        self._actor = actor
        self._asked = asked
        self._on_end = on_end
        self._placed = _call(actor.start, spec)
        self._reported = _call(actor.report)
        self._exit = _call(actor.wait)
        self._report: Report | None = None
        self._status: ExitStatus | None = None
        self._begun: bytes | None = None
        #: The time at which the wait for the actor's answer ends.
        self._deadline = math.inf
        self._waits: set[anyio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"<RayProcess {self.pid or self.waiting} on {self.node or 'no node'} {self._status or 'running'}>"

    @property
    def ended(self) -> bool:
        return self._status is not None

    @property
    def waiting(self) -> str:
        return "" if self.node or self.ended else f"Ray has not placed it; it asked for {self._asked}"

    async def report(self) -> Report:
        if self._report is None:
            try:
                placed: Placed = await _result(self._placed)
                self.node, self.pid = placed.node, placed.pid
                if placed.failure:
                    self._report = Report(code="worker_startup", message=placed.failure)
                else:
                    self._report = await _result(self._reported)
            except RayError as exc:
                self._report = Report(code="worker_startup", message=f"Ray could not run it: {words_of(exc)}")
        return self._report

    def begun(self, call_id: int) -> bool:
        return self._begun is None or begun_in(self._begun, call_id)

    def share(self) -> None:
        return None

    async def cpu_time(self) -> float | None:
        try:
            used: float | None = await _result(_call(self._actor.cpu_time))
        except RayError:
            return None
        return used

    async def wait(self) -> ExitStatus:
        while self._status is None:
            with anyio.CancelScope(deadline=self._deadline) as scope:
                self._waits.add(scope)
                try:
                    status, begun = await _result(self._exit)
                except RayError as exc:
                    status, begun = ExitStatus(lost=words_of(exc)), None
                finally:
                    self._waits.discard(scope)
                if self._status is None:
                    self._status, self._begun = status, begun
            if self._status is None and scope.cancelled_caught:
                self._status = ExitStatus(lost="it did not answer")
        return self._status

    def terminate(self) -> None:
        if not self.ended:
            self._signal(kill=False)

    def kill(self) -> None:
        if self.ended or self._deadline != math.inf:
            return
        if self.node:
            self._signal(kill=True)
            self._deadline = anyio.current_time() + _ANSWER
        else:
            # It may have been placed by now; its worker then ends with it.
            self._status = ExitStatus()
            self._deadline = -math.inf
            end_actor(self._actor)
        for scope in self._waits:
            scope.deadline = self._deadline

    def _signal(self, *, kill: bool) -> None:
        with contextlib.suppress(RayError):  # The connection to Ray has been closed.
            _call(self._actor.signal, kill)

    def _release(self) -> None:
        end_actor(self._actor)
        self._on_end(self)


def _call(method: Any, *args: Any) -> Future[Any]:
    """Call a method of an actor. If the connection to Ray is closed later, the answer may never come.

    Without a connection, Ray itself would start another cluster.

    Raises:
        RayError: There is no connection to Ray, or the connection does not have this actor.
    """
    if not ray.is_initialized():
        raise RayError("the connection to Ray is closed")
    try:
        future: Future[Any] = method.remote(*args).future()
    except RayError:
        raise
    except Exception as exc:
        raise RayError(str(exc)) from exc
    return future


def end_actor(actor: Any) -> None:
    """End an actor, which may already be gone, and Ray with it."""
    if ray.is_initialized():
        with contextlib.suppress(Exception):
            ray.kill(actor)


async def _result(future: Future[Any]) -> Any:
    """Return an actor's answer. A cancellation leaves the call running.

    Raises:
        RayError: The actor, its node or its environment failed.
    """
    await settled(future)
    return future.result()


def words_of(exc: BaseException) -> str:
    """Return the line of a Ray error that gives the reason; Ray's messages have many lines."""
    text = str(exc).strip()
    because = _BECAUSE.search(text)
    words = because[1].strip() if because else (text.splitlines() or [type(exc).__name__])[0]
    return words.partition(" Some common causes")[0]
