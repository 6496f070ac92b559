"""The operations that a control socket offers, one method each. Answers are redacted, and contain no arguments, results,
environments or tokens.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec
import psutil

from snakepit_trio import __version__
from snakepit_trio.errors import SnakepitError
from snakepit_trio.wire.version import PROTOCOL_VERSION

from . import protocol
from .protocol import Refusal

if TYPE_CHECKING:
    from snakepit_trio.observe.events import Event
    from snakepit_trio.pool.pool import Pool
    from snakepit_trio.runtime import Runtime

__all__ = ["EVENTS", "EventsOf", "Operations"]

#: The operation with many answers.
EVENTS = "events"
#: Seconds. The longest wait for a drain.
_LONGEST_DRAIN = 24 * 3600.0
#: Seconds. The longest time for counting the sessions in the store, which may be behind a network.
_COUNT = 1.0


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Status(msgspec.Struct, forbid_unknown_fields=True):
    tree: bool = False
    window: float = 60.0


class _OnWorker(msgspec.Struct, forbid_unknown_fields=True):
    worker: str


class _Drain(msgspec.Struct, forbid_unknown_fields=True):
    worker: str
    timeout_seconds: float = 60.0


class _Resize(msgspec.Struct, forbid_unknown_fields=True):
    size: int
    pool: str = ""


class EventsOf(msgspec.Struct, forbid_unknown_fields=True):
    """The parameters of a subscription."""

    prefixes: list[str] = []


P = TypeVar("P")


def read_params(kind: type[P], params: Mapping[str, Any]) -> P:
    """Return the checked parameters of an operation.

    Raises:
        Refusal: The parameters are invalid.
    """
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as exc:
        raise Refusal("invalid_parameter", str(exc)) from None


class Operations:
    """The operations of one runtime.

    Args:
        runtime: The runtime.
        redact: Removes secrets from a value.
        backend: The running event loop.
    """

    def __init__(self, runtime: Runtime, redact: Callable[[Any], Any], backend: str) -> None:
        self._runtime = runtime
        self._backend = backend
        self._redact = redact
        self._began = time.time()
        self._table: dict[str, tuple[type[Any], Callable[[Any], Awaitable[dict[str, Any]]]]] = {
            "ping": (_Nothing, self._ping),
            "status": (_Status, self._status),
            "cordon": (_OnWorker, self._cordon),
            "uncordon": (_OnWorker, self._uncordon),
            "drain": (_Drain, self._drain),
            "restart": (_OnWorker, self._restart),
            "kill": (_OnWorker, self._kill),
            "resize": (_Resize, self._resize),
            "flight": (_Nothing, self._flight),
        }

    def __repr__(self) -> str:
        return f"<Operations of {self._runtime.run_id}>"

    async def run(self, request: protocol.Request) -> dict[str, Any]:
        """Run the requested operation.

        Raises:
            Refusal: The operation is not possible.
        """
        found = self._table.get(request.op)
        if found is None:
            known = ", ".join(sorted([*self._table, EVENTS]))
            raise Refusal("unknown_operation", f"there is no operation {request.op[:100]!r}; there are {known}")
        kind, method = found
        try:
            return await method(read_params(kind, request.params))
        except SnakepitError as exc:
            raise Refusal(exc.code, self._redact(exc.message)) from None

    @staticmethod
    def event(event: Event) -> dict[str, Any]:
        """Return an event as plain values for a client; it was redacted when it was created."""
        return {
            "name": event.name,
            "time": event.time,
            "measurements": dict(event.measurements),
            "metadata": dict(event.metadata),
        }

    # ---- looking -----------------------------------------------------------------------------------

    async def _ping(self, _: _Nothing) -> dict[str, Any]:
        return {"run_id": self._runtime.run_id, "pid": os.getpid(), "time": time.time()}

    async def _status(self, params: _Status) -> dict[str, Any]:
        runtime = self._runtime
        bridge = getattr(runtime, "bridge", None)
        found = {
            "run_id": runtime.run_id,
            "pid": os.getpid(),
            "program": os.path.basename(sys.argv[0]) if sys.argv else "",
            "versions": {
                "snakepit_trio": __version__,
                "python": platform.python_version(),
                "protocol": PROTOCOL_VERSION,
                "control": protocol.VERSION,
            },
            "backend": self._backend,
            "started": self._began,
            "uptime": time.time() - self._began,
            "rss": psutil.Process().memory_info().rss,
            "sessions": await self._sessions(),
            "host_tools": len(runtime.tools),
            "bridge": self._redact(getattr(bridge, "address", None)),
            "pools": [self._pool(pool, params.window) for pool in runtime.pools.values()],
        }
        if params.tree:
            found["tasks"] = _tasks()
        return found

    async def _sessions(self) -> int | None:
        with anyio.move_on_after(_COUNT):
            try:
                return len(await self._runtime.sessions.list())
            except SnakepitError:
                pass
        return None

    def _pool(self, pool: Pool, window: float) -> dict[str, Any]:
        found = pool.snapshot()
        slots = {slot["index"]: slot for slot in found["slots"]}
        workers = []
        for worker in found["workers"]:
            # The event loop's clock has no meaning in another process.
            worker.pop("next_attempt")
            worker["next_attempt_in"] = slots.get(worker["slot"], {}).get("next_attempt_in")
            workers.append(self._redact(worker))
        requests = []
        for request in found["requests"]:
            if request["phase"] != "running":
                request["running_for"] = None
            requests.append(self._redact(request))
        return {
            "name": pool.name,
            "adapter": pool.config.adapter,
            "threads": pool.config.threads,
            "max_queue": pool.config.max_queue,
            "stats": found["stats"],
            "workers": workers,
            "slots": [self._redact(slot) for slot in found["slots"]],
            "requests": requests,
            "latency": _latency(found["ended"], window),
        }

    async def _flight(self, _: _Nothing) -> dict[str, Any]:
        return self._runtime.recorder.dump()

    # ---- acting ------------------------------------------------------------------------------------

    def _holder(self, worker_id: str) -> Pool:
        for pool in self._runtime.pools.values():
            if any(worker.id == worker_id for worker in pool.workers()):
                return pool
        raise Refusal("no_such_worker", f"there is no worker {worker_id[:100]!r}")

    async def _cordon(self, params: _OnWorker) -> dict[str, Any]:
        self._holder(params.worker).cordon(params.worker)
        return {"worker": params.worker}

    async def _uncordon(self, params: _OnWorker) -> dict[str, Any]:
        self._holder(params.worker).cordon(params.worker, cordoned=False)
        return {"worker": params.worker}

    async def _drain(self, params: _Drain) -> dict[str, Any]:
        if not 0 <= params.timeout_seconds <= _LONGEST_DRAIN:
            raise Refusal("invalid_parameter", f"timeout_seconds must be from 0 to {_LONGEST_DRAIN:g} seconds")
        pool = self._holder(params.worker)
        with anyio.move_on_after(params.timeout_seconds):
            await pool.drain(params.worker)
            return {"worker": params.worker}
        raise Refusal("timeout", f"the worker still held calls after {params.timeout_seconds:g} s; it gets no new ones")

    async def _restart(self, params: _OnWorker) -> dict[str, Any]:
        return {"worker": params.worker, "replaced": await self._holder(params.worker).recycle(params.worker)}

    async def _kill(self, params: _OnWorker) -> dict[str, Any]:
        self._holder(params.worker).kill_worker(params.worker)
        return {"worker": params.worker}

    async def _resize(self, params: _Resize) -> dict[str, Any]:
        pool = self._runtime.pool(params.pool)
        await pool.resize(params.size)
        return {"pool": pool.name, "size": params.size}


def _latency(ended: list[dict[str, Any]], window: float) -> dict[str, Any]:
    """Return percentiles of the durations, in seconds and including waits, of calls that succeeded in the last ``window``
    seconds.
    """
    recent = [end for end in ended if end["ago"] <= window and end["outcome"] == "completed"]
    durations = sorted(end["duration"] for end in recent)
    waits = sorted(end["queue_wait"] for end in recent)
    count = len(durations)
    if not count:
        return {"window": window, "count": 0, "p50": None, "p95": None, "max": None, "wait_p50": None}
    return {
        "window": window,
        "count": count,
        "p50": durations[count // 2],
        "p95": durations[min(count - 1, int(count * 0.95))],
        "max": durations[-1],
        "wait_p50": waits[count // 2],
    }


def _tasks() -> list[dict[str, Any]]:
    """Return the library's tasks and the tasks below them: a nursery's tasks are children of the task that opened it."""
    tasks = {task.id: task for task in anyio.get_running_tasks()}

    def ours(task: anyio.TaskInfo | None) -> bool:
        while task is not None:
            if (task.name or "").startswith("snakepit_trio."):
                return True
            task = tasks.get(task.parent_id) if task.parent_id is not None else None
        return False

    return [
        {"id": task.id, "parent": task.parent_id, "name": (task.name or "?")[:200]}
        for task in tasks.values()
        if ours(task)
    ]
