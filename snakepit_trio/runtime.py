"""The runtime, which owns the root nursery, and the functions that open one."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import anyio
import anyio.abc
import attrs
import sniffio

from snakepit_trio import __version__, _forks
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._config_checks import refuse
from snakepit_trio._fair_budget import FairBudget, room_for
from snakepit_trio._home import Home, HomeNursery
from snakepit_trio._interrupts import Unwrapped, interrupt_in, managed, protected
from snakepit_trio.config import PoolConfig, RuntimeConfig
from snakepit_trio.control.operations import Operations
from snakepit_trio.control.server import ControlServer
from snakepit_trio.errors import ConfigError, PoolNotFound, WorkerStartupError
from snakepit_trio.launch.choice import launcher_for
from snakepit_trio.observe.events import EventBus
from snakepit_trio.observe.printable import one_line
from snakepit_trio.observe.recorder import FlightRecorder, dump_on_signal
from snakepit_trio.observe.redaction import Redactor
from snakepit_trio.observe.timings import RequestTimings
from snakepit_trio.observe.tracing import Telemetry
from snakepit_trio.policies.options import TIMEOUTS
from snakepit_trio.pool.pool import Pool
from snakepit_trio.pool.services import PoolServices
from snakepit_trio.sessions.directory import SessionDirectory
from snakepit_trio.sessions.programs import ProgramStore
from snakepit_trio.sessions.records import Limits
from snakepit_trio.sessions.store import open_store
from snakepit_trio.supervision.run import open_run
from snakepit_trio.supervision.state_directory import private_directory, state_directory
from snakepit_trio.tools.registry import ToolRegistry
from snakepit_trio.tools.serving import HostThreads
from snakepit_trio.tools.waits import Waits
from snakepit_trio.wire.transports import make_wire
from snakepit_trio.worker.importing import refuse_tower

if TYPE_CHECKING:
    from snakepit_trio.bridge.server import Bridge
    from snakepit_trio.config import MetricsConfig
    from snakepit_trio.config.keywords import PoolOptions
    from snakepit_trio.launch.base import Launcher
    from snakepit_trio.observe.http import Metrics
    from snakepit_trio.pool.scheduling.request import Request
    from snakepit_trio.sessions.store import Store
    from snakepit_trio.supervision.run import Run
    from snakepit_trio.wire.connection import Wire

__all__ = ["Runtime", "open_pool", "open_runtime"]

_log = logging.getLogger(__name__)
# A library is silent until the application sets logging up.
logging.getLogger("snakepit_trio").addHandler(logging.NullHandler())

#: Seconds. The longest time that closing takes after the block was cancelled: workers are asked to stop, then killed.
_CANCELLED_CLOSE = 1.0
#: The number of workers that can each have a reserved share of ``max_host_call_bytes``.
_WORKERS = 1024


class Runtime:
    """A set of pools with the services that they share. Created by :func:`open_runtime`.

    Attributes:
        config: The configuration.
        events: The event bus; see ``events.subscribe(...)``.
        tools: The host tools, which the workers' tools may call.
        sessions: The sessions of all pools.
        programs: The named blobs.
        metrics: The Prometheus metrics, if configured: ``metrics.address``, ``metrics.collector``.
        recorder: The flight recorder: ``recorder.dump()``, ``recorder.write()``.
        internal_errors: The library's unexpected exceptions; ``internal_errors.counts`` counts them by what each ended.
        run_id: The runtime's identity on this machine.
        bridge: The gRPC server for clients, if configured: ``bridge.address``, ``bridge.token``.
    """

    bridge: Bridge | None = None

    def __init__(
        self,
        config: RuntimeConfig,
        run: Run,
        wire: Wire,
        backend: str,
        store: Store,
        launcher: Callable[[PoolConfig, Run], Launcher],
    ) -> None:
        self.config = config
        self._launcher = launcher
        self.run_id: str = run.run_id
        self._redactor = Redactor(config.redact_patterns)
        self.events: EventBus = EventBus(config.recorder_size, self._redactor.value)
        self.internal_errors: InternalErrors = InternalErrors(self.events.emit)
        self.internal_errors.home = Home()
        self.events.errors = self.internal_errors
        # Connections exist before the first pool is there and after the last pool is gone.
        wire.errors = self.internal_errors
        self.sessions: SessionDirectory = SessionDirectory(store, self.events)
        self.programs: ProgramStore = ProgramStore(store, self.sessions, config.program_ttl, self.events)
        self.tools: ToolRegistry = ToolRegistry(self.internal_errors)
        self.recorder: FlightRecorder = FlightRecorder(
            self.events, self._look, functools.partial(_dumps, config.state_dir), self._redactor, run.run_id
        )
        self._timings = None if config.metrics is None else RequestTimings(config.metrics.max_tools)
        self.metrics: Metrics | None = None if config.metrics is None else self._make_metrics(config.metrics)
        self._telemetry = Telemetry.of(config.telemetry, __version__, self._all_pools, self._redactor.text)
        self._run = run
        self._wire = wire
        self._backend = backend
        self._pools: dict[str, Pool] = {}
        self._ids = itertools.count(1)
        self._token = secrets.token_urlsafe(32)
        _forks.at_fork(self._forked)

    def __repr__(self) -> str:
        return f"<Runtime {self.run_id} {list(self._pools.values())}>"

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The pools by name."""
        return dict(self._pools)

    def pool(self, name: str = "") -> Pool:
        """Return the pool of this name; without a name ``"default"``, or the only pool.

        Raises:
            PoolNotFound: There is no such pool.
        """
        if not name:
            name = next(iter(self._pools)) if len(self._pools) == 1 else "default"
        try:
            return self._pools[name]
        except KeyError:
            raise PoolNotFound(
                f"there is no pool {name!r}; there are {', '.join(map(repr, self._pools)) or 'none'}",
                details={"pool": name},
            ) from None

    @property
    def killed(self) -> Mapping[str, tuple[str, ...]]:
        """The ids, by pool, of the workers that were killed because they did not stop in time; filled when the runtime closes."""
        return {pool.name: tuple(pool.killed) for pool in self._pools.values() if pool.killed}

    def expose(self, pool: str, *tools: str, prefix: str | None = None) -> None:
        """Register tools of a pool as host tools, so that the tools of all workers can call them through the host.

        Args:
            pool: The name of the pool.
            tools: The names of the tools; by default all tools of the pool that return one result.
            prefix: The host tools are named ``PREFIX.TOOL``; by default the prefix is the pool's name.

        Raises:
            PoolNotFound: There is no such pool.
            ToolNotFound: The pool has no such tool.
            StreamingUnsupported: A named tool is a streaming tool.
            ToolExists, InvalidParameter: As from ``runtime.tools.register``; no tool was registered.
        """
        target = self.pool(pool)
        chosen = tools or tuple(spec.name for spec in target.tools() if not spec.streaming)
        functions = {f"{prefix or pool}.{tool}": target.caller(tool) for tool in chosen}
        self.tools.register_many(functions)

    def kill(self) -> None:
        """Kill every worker at once, without waiting for running calls or ``stop_grace``."""
        for pool in self._pools.values():
            pool.kill()

    # ---- inside ----------------------------------------------------------------------------------

    async def _open(self, nursery: anyio.abc.TaskGroup, stack: AsyncExitStack) -> None:
        starting = anyio.Semaphore(max(2, 2 * (os.cpu_count() or 1)))
        failed: dict[str, WorkerStartupError] = {}

        @protected
        async def open_one(pool: Pool) -> None:
            try:
                await pool.open(nursery)
            except WorkerStartupError as exc:
                failed[pool.name] = exc
                _log.error("%s", one_line(exc.message), extra={"pool": pool.name})

        waits = Waits()
        host_threads = HostThreads(self.config.host_threads, waits)
        largest = max(config.max_payload for config in self.config.pools)
        host_call_bytes = FairBudget(room_for(largest, self.config.max_host_call_bytes), _WORKERS, largest)
        for config in self.config.pools:
            launcher = self._launcher(config, self._run)
            await stack.enter_async_context(launcher)
            parts = PoolServices(
                run_id=self.run_id,
                token=self._token,
                socket_dir=str(self._run.run_dir) if hasattr(os, "fork") else None,
                backend=self._backend,
                launcher=launcher,
                wire=self._wire,
                events=self.events,
                ids=self._ids,
                redact=self._redactor.text,
                registries=self._registries,
                waits=waits,
                host_threads=host_threads,
                host_call_bytes=host_call_bytes,
                starting=starting,
                errors=self.internal_errors,
                timings=self._timings,
                bindings=self.sessions.bindings,
                telemetry=self._telemetry,
            )
            self._pools[config.name] = Pool(config, parts, self)
        async with anyio.create_task_group() as opening:
            for pool in self._pools.values():
                opening.start_soon(open_one, pool)
        if failed and len(failed) == len(self._pools):
            raise _none_could_start([failed[name] for name in self._pools])

    async def _close(self, *, drain: bool) -> None:
        @protected
        async def close_one(pool: Pool) -> None:
            await pool.aclose(drain=drain)

        async with anyio.create_task_group() as closing:
            for pool in self._pools.values():
                closing.start_soon(close_one, pool)
        if self.bridge is not None:
            # The bridge closes after the pools, so that its clients receive the answers to running calls.
            await self.bridge.aclose(drain=drain)

    async def _close_at_once(self) -> None:
        """Stop the workers, and kill them after ``_CANCELLED_CLOSE`` seconds; shielded from cancellation."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_CANCELLED_CLOSE):
            await self._close(drain=False)

    def _make_metrics(self, config: MetricsConfig) -> Metrics:
        try:
            from snakepit_trio.observe.http import Metrics
            from snakepit_trio.observe.prometheus import RuntimeCollector
        except ImportError as exc:
            raise ConfigError(
                f"metrics: expected snakepit-trio[prometheus] to be installed: {exc}",
                details={"source": "code", "key": "metrics", "expected": "snakepit-trio[prometheus] to be installed"},
            ) from exc
        assert self._timings is not None
        collector = RuntimeCollector(__version__, self._all_pools, self._timings, self.internal_errors.counts)
        return Metrics(config, collector, self._readiness, self.internal_errors)

    def _all_pools(self) -> list[Pool]:
        return list(self._pools.values())

    def _readiness(self) -> dict[str, tuple[int, int]]:
        """Return, by pool, the number of workers that accept calls and the number wanted."""
        found = {}
        for pool in self._pools.values():
            stats = pool.stats()
            found[pool.name] = (0 if pool.closed else stats.ready, stats.size)
        return found

    def _look(self) -> dict[str, Any]:
        """Return the state of all pools as plain values, for the flight recorder."""
        return {
            "run_id": self.run_id,
            "backend": self._backend,
            "pools": {pool.name: pool.snapshot() for pool in self._pools.values()},
        }

    def _forked(self) -> None:
        """In a fork of this process, mark the pools as closed: the workers belong to the parent."""
        for pool in self._pools.values():
            pool.forked()

    def _report(self) -> None:
        """Log the workers that had to be killed."""
        for pool in self._pools.values():
            if pool.killed:
                _log.warning("pool %s: had to kill %s", pool.name, ", ".join(pool.killed), extra={"pool": pool.name})

    def _registries(self, request: Request) -> tuple[ToolRegistry, ...]:
        """Return the registries in which a request's host tools are looked up, nearest first."""
        if request.session is not None:
            known = self.sessions.known(request.session)
            if known is not None and known.tools is not None:
                return known.tools, self.tools
        return (self.tools,)


@managed
async def open_runtime(config: RuntimeConfig) -> AsyncIterator[Runtime]:
    """Open a runtime's pools, wait until they are ready, and close them when the block ends.

    If the block ends normally, running requests have ``stop_grace`` seconds of their pool to end. If the block raised or was
    cancelled, they are cancelled at once. An exception of the block propagates unwrapped. No task, process, socket, file or
    shared memory is left afterwards, also after a cancellation.

    Raises:
        WorkerStartupError: No pool has a worker that could start; with several pools ``details["pools"]`` holds the
            reason for each. If only some pools have none, their requests fail with that reason and the other pools serve.
        ConfigError: The argument is not a RuntimeConfig, the configuration does not fit this event loop, or a worker's
            import of its adapter opens the runtime (put it under ``if __name__ == "__main__"``).
    """
    if not isinstance(config, RuntimeConfig):
        refuse("config", type(config), "a RuntimeConfig")
    refuse_tower(config)
    wire = make_wire(sniffio.current_async_library())
    with open_run(config.state_dir) as run:
        launcher = functools.partial(launcher_for, redact=Redactor(config.redact_patterns).text)
        async with assemble(config, run, wire, launcher) as runtime:
            yield runtime


@managed
async def assemble(
    config: RuntimeConfig, run: Run, wire: Wire, launcher: Callable[[PoolConfig, Run], Launcher]
) -> AsyncIterator[Runtime]:
    """Open a runtime as :func:`open_runtime` does, over the given run, wire and launchers; tests pass their own."""
    root = _Root(config, run, wire, launcher)
    with Unwrapped() as unwrapped:
        try:
            async with HomeNursery("open_pool or open_runtime", root.ended) as nursery:
                nursery.start_soon(root.run, nursery)
                try:
                    runtime = await root.opened()
                    with _forks.contained():
                        yield runtime
                except BaseException as exc:
                    root.leave(drain=False)
                    if isinstance(exc, anyio.get_cancelled_exc_class()):
                        raise
                    unwrapped.raised = exc
                else:
                    root.leave(drain=True)
        finally:
            if root.failure is not None:
                raise root.failure


class _Root:
    """The task that opens and closes a runtime.

    It is a separate task because Trio raises KeyboardInterrupt in the main task wherever that task waits, shielded or
    not. The main task therefore waits at the end of a nursery, which continues to wait after an interrupt, and never
    inside clean-up.

    Attributes:
        failure: The exception with which opening or closing failed, or None.
    """

    def __init__(
        self, config: RuntimeConfig, run: Run, wire: Wire, launcher: Callable[[PoolConfig, Run], Launcher]
    ) -> None:
        self.failure: BaseException | None = None
        self.ended: anyio.Event = anyio.Event()
        self._config = config
        self._run = run
        self._wire = wire
        self._launcher = launcher
        self._backend = sniffio.current_async_library()
        self._runtime: Runtime | None = None
        self._ready = anyio.Event()
        self._leaving = anyio.Event()
        self._drain = False
        self._opening = anyio.CancelScope()

    async def opened(self) -> Runtime:
        """Wait until the runtime is open.

        Raises:
            WorkerStartupError, ConfigError: The runtime could not be opened.
        """
        await self._ready.wait()
        if self._runtime is not None:
            return self._runtime
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        # The root task was cancelled, and the same scope cancels this task.
        await anyio.sleep_forever()
        raise AssertionError

    def leave(self, *, drain: bool) -> None:
        """Make :meth:`run` close the runtime and return; with ``drain``, running requests may end first."""
        self._drain = drain
        self._leaving.set()
        if self._runtime is None:
            self._opening.cancel()

    @protected
    async def run(self, nursery: anyio.abc.TaskGroup) -> None:
        """Open the runtime, wait for :meth:`leave`, and close it. A failure cancels the nursery, and with it the block."""
        try:
            with Unwrapped(), self._opening:
                await self._open_and_close()
        except BaseException as exc:
            if isinstance(exc, anyio.get_cancelled_exc_class()):
                raise
            # Not raised here: on asyncio an interrupt that leaves a task stops the loop, before the block could be left.
            self.failure = exc
            if self._runtime is not None:
                nursery.cancel_scope.cancel()
        finally:
            self._ready.set()
            self.ended.set()

    async def _open_and_close(self) -> None:
        config, run = self._config, self._run
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._wire)
            store = await stack.enter_async_context(open_store(config.store, limits_of(config)))
            runtime = Runtime(config, run, self._wire, self._backend, store, self._launcher)
            stack.callback(runtime.events.close)
            if config.bridge is not None:
                from snakepit_trio.bridge.server import bound_bridge

                runtime.bridge = stack.enter_context(bound_bridge(runtime, run, runtime._redactor))
            if runtime._telemetry is not None:
                stack.callback(runtime._telemetry.close)
            stack.callback(runtime._report)
            wreck: dict[str, Any] | None = None
            try:
                with Unwrapped() as unwrapped:
                    async with anyio.create_task_group() as nursery:
                        try:
                            await self._start(runtime, nursery, stack)
                            self._runtime = runtime
                            self._ready.set()
                            await self._leaving.wait()
                            await (runtime._close(drain=True) if self._drain else runtime._close_at_once())
                        except BaseException as exc:
                            cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
                            if cancelled and nursery.cancel_scope.cancel_called:
                                # One of the library's tasks has failed and ends the whole runtime.
                                wreck = runtime.recorder.dump()
                            await runtime._close_at_once()
                            if cancelled:
                                raise
                            unwrapped.raised = exc
                        nursery.cancel_scope.cancel()
            except (Exception, BaseExceptionGroup) as exc:
                # A cancellation is not a crash.
                alone = anyio.get_cancelled_exc_class()
                failed = not isinstance(exc, BaseExceptionGroup) or exc.split(alone)[1] is not None
                if wreck is not None and failed and interrupt_in(exc) is None:
                    runtime.recorder.write("crash", wreck)
                raise

    async def _start(self, runtime: Runtime, nursery: anyio.abc.TaskGroup, stack: AsyncExitStack) -> None:
        config, errors = self._config, runtime.internal_errors
        errors.keep(nursery, runtime.sessions.keep)
        if runtime.metrics is not None:
            await errors.serve(nursery, runtime.metrics.serve)
        if config.dump_on_signal:
            await errors.serve(nursery, dump_on_signal, runtime.recorder)
        if config.control and self._run.control is not None:
            operations = Operations(runtime, runtime._redactor.value, self._backend)
            control = ControlServer(operations, runtime.events, self._run.control, errors, self._run.restore)
            await errors.serve(nursery, control.serve)
        await runtime._open(nursery, stack)
        if runtime.bridge is not None:
            errors.keep(nursery, runtime.bridge.serve)


def _none_could_start(failed: list[WorkerStartupError]) -> WorkerStartupError:
    """Return the error of a runtime in which no pool has a worker that could start."""
    if len(failed) == 1:
        return failed[0]
    return WorkerStartupError(
        "; ".join(error.message for error in failed),
        details={**failed[0].details, "pools": {str(error.details["pool"]): error.details for error in failed}},
    )


def _dumps(state_dir: str | None) -> Path:
    """Return the directory of the flight recorder's dumps."""
    return private_directory(private_directory(state_directory(state_dir)) / "recorder")


def limits_of(config: RuntimeConfig) -> Limits:
    """Return the session and program quotas of a configuration."""
    return Limits(**{field.name: getattr(config, field.name) for field in attrs.fields(Limits)})


@managed
async def open_pool(adapter: str | PoolConfig | None = None, **options: Unpack[PoolOptions]) -> AsyncIterator[Pool]:
    """Open a runtime with one pool.

    ``async with open_pool("my_module:Math", size=4) as pool: ...``

    Args:
        adapter: The adapter's reference, or a :class:`~snakepit_trio.PoolConfig`; None if ``command`` is given.
        options: Any field of :class:`~snakepit_trio.PoolConfig`.

    The block ends, and is cancelled, as that of :func:`open_runtime`: no task, process, file or shared memory is left.

    Raises:
        ConfigError: An option is unknown or invalid.
        WorkerStartupError: No worker could start; ``details`` holds the pool's name and the reason.
    """
    given: dict[str, Any] = dict(options)
    if isinstance(adapter, PoolConfig):
        if "timeouts" in given:
            # The profile named here overrides the timeouts that the config's own profile set.
            profile = TIMEOUTS.get(given["timeouts"], TIMEOUTS["balanced"])
            given = {**profile._asdict(), **given}
        config = attrs.evolve(adapter, **given)
    else:
        config = PoolConfig(adapter=adapter, **given)
    async with open_runtime(RuntimeConfig(pools=[config])) as runtime:
        yield runtime.pool(config.name)
