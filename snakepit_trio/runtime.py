"""The runtime: the root nursery that everything hangs on, and the two ways to open one."""

from __future__ import annotations

import difflib
import functools
import itertools
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import attrs
import sniffio

from snakepit_trio import __version__, _forks
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._config_checks import refuse
from snakepit_trio._fair_budget import FairBudget, room_for
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

#: How long closing may take after a body that was cancelled, in seconds: the workers are asked to stop, then killed.
_CANCELLED_CLOSE = 1.0
#: So many workers can each have their own part of what host calls may use.
_WORKERS = 1024


class Runtime:
    """Pools and what they share. Made by :func:`open_runtime`.

    Attributes:
        config: Its configuration.
        events: What happens in it; ``events.subscribe(...)``.
        tools: The host's own tools, which the workers' tools may call.
        sessions: The sessions of all pools.
        programs: Named blobs.
        metrics: For Prometheus, when they are configured: ``metrics.address``, ``metrics.collector``.
        recorder: The flight recorder; ``recorder.dump()``, ``recorder.write()``.
        internal_errors: The exceptions that the library did not expect; ``internal_errors.counts`` by what they ended.
        run_id: Its identity on this machine.
        bridge: Its door for gRPC clients, when the configuration asks for one; ``bridge.address``, ``bridge.token``.
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
        self.events.errors = self.internal_errors
        # Connections are made before and after there is a pool to speak for them.
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

    def pool(self, name: str = "default") -> Pool:
        """The pool of this name.

        Raises:
            PoolNotFound: There is none.
        """
        try:
            return self._pools[name]
        except KeyError:
            raise PoolNotFound(
                f"there is no pool {name!r}; there are {', '.join(map(repr, self._pools)) or 'none'}",
                details={"pool": name},
            ) from None

    @property
    def killed(self) -> Mapping[str, tuple[str, ...]]:
        """After the end: by pool, the ids of the workers that had to be killed because they did not stop in time."""
        return {pool.name: tuple(pool.killed) for pool in self._pools.values() if pool.killed}

    def expose(self, pool: str, *tools: str, prefix: str | None = None) -> None:
        """Let the tools of all workers call tools of a pool, through the host.

        Args:
            pool: The pool whose tools are exposed.
            tools: Which of them; all that give one result when none is named.
            prefix: They are called ``PREFIX.TOOL`` as host tools; by default the pool's name.

        Raises:
            PoolNotFound: There is no such pool.
            ToolNotFound: It has no such tool.
            StreamingUnsupported: It gives a stream.
            ToolExists, InvalidParameter: As from ``runtime.tools.register``; nothing was exposed.
        """
        target = self.pool(pool)
        chosen = tools or tuple(spec.name for spec in target.tools() if not spec.streaming)
        functions = {f"{prefix or pool}.{tool}": target.caller(tool) for tool in chosen}
        self.tools.register_many(functions)

    def kill(self) -> None:
        """End every worker at once, for a close that nobody wants to wait for any longer."""
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
            # After the pools: its clients get the answers that they wait for.
            await self.bridge.aclose(drain=drain)

    async def _close_at_once(self) -> None:
        """Stop the workers, or kill them when that takes too long; also in what is cancelled."""
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
        """By pool: how many workers take calls, and how many there should be."""
        found = {}
        for pool in self._pools.values():
            stats = pool.stats()
            found[pool.name] = (0 if pool.closed else stats.ready, stats.size)
        return found

    def _look(self) -> dict[str, Any]:
        """How things stand, for the flight recorder."""
        return {
            "run_id": self.run_id,
            "backend": self._backend,
            "pools": {pool.name: pool.snapshot() for pool in self._pools.values()},
        }

    def _forked(self) -> None:
        """In a fork of this process: the workers are not its own."""
        for pool in self._pools.values():
            pool.forked()

    def _report(self) -> None:
        """Say what did not end by itself."""
        for pool in self._pools.values():
            if pool.killed:
                _log.warning("pool %s: had to kill %s", pool.name, ", ".join(pool.killed), extra={"pool": pool.name})

    def _registries(self, request: Request) -> tuple[ToolRegistry, ...]:
        """Where the host tools of a request are looked for, the nearest first."""
        if request.session is not None:
            known = self.sessions.known(request.session)
            if known is not None and known.tools is not None:
                return known.tools, self.tools
        return (self.tools,)


@managed
async def open_runtime(config: RuntimeConfig) -> AsyncIterator[Runtime]:
    """Open pools, wait until they are ready, and close them when the block ends.

    When the block ends in good order, running requests may end within each pool's ``stop_grace``; a block that raised or
    was cancelled skips that. What the block raises leaves unwrapped. Afterwards nothing is left: no task, process,
    socket, file, shared memory.

    Raises:
        WorkerStartupError: No pool has got a worker; ``details["pools"]`` says why for each, when there are several. When
            only some have not, their requests fail with that reason and the others serve.
        ConfigError: The configuration does not fit this event loop, or is no RuntimeConfig; or this is a worker that is
            importing its adapter, whose import does all this: see ``if __name__ == "__main__"``.
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
    """What :func:`open_runtime` does, over a given run, wire and launchers: a test may have its own."""
    root = _Root(config, run, wire, launcher)
    with Unwrapped() as unwrapped:
        try:
            async with anyio.create_task_group() as nursery:
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
    """The task in which a runtime is opened and closed.

    A task of its own, since an interrupt is raised in the main task wherever that waits, shielded or not: at the end of a
    nursery, which goes on to wait all the same, and not in the middle of a clean-up.

    Attributes:
        failure: What it has failed with; None as long as it has not.
    """

    def __init__(
        self, config: RuntimeConfig, run: Run, wire: Wire, launcher: Callable[[PoolConfig, Run], Launcher]
    ) -> None:
        self.failure: BaseException | None = None
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
            WorkerStartupError, ConfigError: It can't be.
        """
        await self._ready.wait()
        if self._runtime is not None:
            return self._runtime
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        # It was cancelled, and so is this.
        await anyio.sleep_forever()
        raise AssertionError

    def leave(self, *, drain: bool) -> None:
        """The block has ended, or will never begin: close, and when draining let end what runs. Ends :meth:`run`."""
        self._drain = drain
        self._leaving.set()
        if self._runtime is None:
            self._opening.cancel()

    @protected
    async def run(self, nursery: anyio.abc.TaskGroup) -> None:
        """Be the runtime. A failure cancels the nursery, and with it the block."""
        try:
            with Unwrapped(), self._opening:
                await self._open_and_close()
        except BaseException as exc:
            if isinstance(exc, anyio.get_cancelled_exc_class()):
                raise
            # Not raised here: on asyncio an interrupt stops the loop as it leaves a task, and the block has yet to be left.
            self.failure = exc
            if self._runtime is not None:
                nursery.cancel_scope.cancel()
        finally:
            self._ready.set()

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
                                # A task of our own has failed, and takes everything down.
                                wreck = runtime.recorder.dump()
                            await runtime._close_at_once()
                            if cancelled:
                                raise
                            unwrapped.raised = exc
                        nursery.cancel_scope.cancel()
            except (Exception, BaseExceptionGroup) as exc:
                # A cancellation alone is no crash.
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
    """The failure of a runtime none of whose pools has got a worker."""
    if len(failed) == 1:
        return failed[0]
    return WorkerStartupError(
        "; ".join(error.message for error in failed),
        details={**failed[0].details, "pools": {str(error.details["pool"]): error.details for error in failed}},
    )


def _dumps(state_dir: str | None) -> Path:
    """Where the flight recorder's dumps are."""
    return private_directory(private_directory(state_directory(state_dir)) / "recorder")


def limits_of(config: RuntimeConfig) -> Limits:
    """The quotas of a configuration."""
    return Limits(**{field.name: getattr(config, field.name) for field in attrs.fields(Limits)})


def _known(options: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in attrs.fields(PoolConfig)}
    for key in options:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            raise ConfigError(
                f"{key}: not an option of a pool{f'; did you mean {close[0]!r}?' if close else ''}",
                details={"source": "code", "key": key, "expected": "a field of PoolConfig"},
            )
    return options


@managed
async def open_pool(adapter: str | PoolConfig | None = None, **options: Any) -> AsyncIterator[Pool]:
    """Open a runtime with one pool.

    ``async with open_pool("my_module:Math", size=4) as pool: ...``

    Args:
        adapter: The adapter's reference, or a whole :class:`~snakepit_trio.PoolConfig`; None when there is a ``command``.
        options: Any field of :class:`~snakepit_trio.PoolConfig`.

    Raises:
        ConfigError: An option is unknown or refused.
        WorkerStartupError: No worker could start; ``details`` name the pool and the reason.
    """
    if isinstance(adapter, PoolConfig):
        if "timeouts" in options:
            # A profile that is chosen now goes before what the old one gave.
            profile = TIMEOUTS.get(options["timeouts"], TIMEOUTS["balanced"])
            options = {**profile._asdict(), **options}
        config = attrs.evolve(adapter, **_known(options))
    else:
        config = PoolConfig(adapter=adapter, **_known(options))
    async with open_runtime(RuntimeConfig(pools=[config])) as runtime:
        yield runtime.pool(config.name)
