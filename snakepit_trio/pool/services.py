"""The services that a runtime passes to its pools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anyio

    from snakepit_trio._bulkhead import InternalErrors
    from snakepit_trio._fair_budget import FairBudget
    from snakepit_trio.launch.base import Launcher
    from snakepit_trio.observe.events import EventBus
    from snakepit_trio.observe.tracing import Telemetry
    from snakepit_trio.tools.registry import ToolRegistry
    from snakepit_trio.tools.serving import HostThreads
    from snakepit_trio.tools.waits import Waits
    from snakepit_trio.wire.connection import Wire

    from .observer import Timings
    from .scheduling.request import Binding, Request

__all__ = ["PoolServices"]


class PoolServices:
    """The services that a runtime passes to its pools."""

    def __init__(
        self,
        *,
        run_id: str,
        token: str,
        socket_dir: str | None,
        backend: str,
        launcher: Launcher,
        wire: Wire,
        events: EventBus,
        ids: Iterator[int],
        redact: Callable[[str], str],
        registries: Callable[[Request], tuple[ToolRegistry, ...]],
        waits: Waits,
        host_threads: HostThreads,
        host_call_bytes: FairBudget,
        starting: anyio.Semaphore,
        errors: InternalErrors,
        timings: Timings | None = None,
        bindings: Callable[[str], Iterable[Binding]] = lambda _: (),
        telemetry: Telemetry | None = None,
    ) -> None:
        self.run_id = run_id
        self.token = token
        self.socket_dir = socket_dir
        self.backend = backend
        self.launcher = launcher
        self.wire = wire
        self.events = events
        self.ids = ids
        self.redact = redact
        self.registries = registries
        self.waits = waits
        self.host_threads = host_threads
        self.host_call_bytes = host_call_bytes
        self.starting = starting
        self.errors = errors
        self.timings = timings
        #: Returns the bindings of sessions to a pool's workers.
        self.bindings = bindings
        self.telemetry = telemetry
