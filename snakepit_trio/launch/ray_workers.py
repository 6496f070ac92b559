"""Workers on the nodes of a Ray cluster, started by actors that Ray places by their resources.

This is the host's side. Ray chooses a worker's node, starts an actor there (:mod:`snakepit_trio.launch.ray_actor`), and
carries the worker's lifecycle: start, output, signals, end. Calls go from the host to the worker directly, over TCP
with TLS; the run issues the certificates (:mod:`snakepit_trio.launch.authority`).

Ray's functions block, and some of their results are bound to the calling thread. So all of them run in one thread that
lives as long as the launcher. Their futures are awaited without a thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import ray
from ray.exceptions import RayError

from snakepit_trio.errors import WorkerStartupError

from .authority import Authority
from .base import LaunchContext, Launcher, WorkerSpec
from .futures import settled
from .ray_actor import WorkerActor
from .ray_process import RayProcess, end_actor, words_of

if TYPE_CHECKING:
    from snakepit_trio.config import RayConfig

__all__ = ["RayLauncher", "ray_launcher"]

_log = logging.getLogger("snakepit_trio.launch")

#: Seconds. The time in which the cluster's address must accept a connection; Ray itself tries for minutes.
_REACH = 5.0
#: Seconds. The longest time for closing the connection to Ray.
_LEAVE = 20.0


def ray_launcher(context: LaunchContext) -> Launcher:
    """Return the launcher ``"ray"``; the target of its entry point."""
    assert context.config.ray is not None
    return RayLauncher(context.config.ray, context.run_id, context.most_workers)


class RayLauncher(Launcher):
    """Starts each worker through its own actor, which ends with this process.

    Args:
        config: The cluster and the resources.
        run_id: The id named in the run's certificates.
        most: The largest number of simultaneous workers.
    """

    same_machine = False

    def __init__(self, config: RayConfig, run_id: str, most: int) -> None:
        self._config = config
        self._most = most
        self._authority = Authority(run_id)
        self._asked = ", ".join(f"{name}={amount:g}" for name, amount in config.resources.items()) or "no resources"
        self._held: set[RayProcess] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snakepit-ray")
        self._connection: Future[None] | None = None
        self._connecting = anyio.Lock()
        #: Whether this launcher owns the connection, and Ray's name for it.
        self._owned = False
        self._job = ""
        self._group: Any = None
        self._actor_class: Any = None

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            # All at once, because each has its time to answer, and none on a lost node does.
            for process in list(self._held):
                process.kill()
            for process in list(self._held):
                await process.aclose()
            left = self._thread.submit(self._leave)
            with anyio.move_on_after(_LEAVE):
                await settled(left)
            if not left.done():
                _log.warning("the connection to Ray did not end within %g s", _LEAVE)
            # The thread is idle, or stuck in Ray, where it can't be reached.
            self._thread.shutdown(wait=left.done(), cancel_futures=True)

    async def start(self, spec: WorkerSpec) -> RayProcess:
        await self._connect()
        credentials = self._authority.for_worker(spec.worker_id)
        spec = attrs.evolve(spec, tls=credentials, socket_dir=None)
        made = self._thread.submit(self._actor_class.remote)
        try:
            await settled(made)
        except BaseException:
            made.add_done_callback(_unwanted)
            raise
        try:
            process = RayProcess(made.result(), spec, self._authority.for_host(), self._asked, self._held.discard)
        except Exception as exc:
            raise _failure("Ray refused an actor", exc) from exc
        self._held.add(process)
        return process

    async def _connect(self) -> None:
        async with self._connecting:
            if self._connection is not None and self._connection.done() and self._job != _job():
                # The application has closed the connection, and may have made another. Without one, Ray would start a
                # cluster; and the old connection's reservations are gone.
                self._connection = self._group = None
                self._owned = False
            if self._connection is None:
                await self._reach()
                self._connection = self._thread.submit(self._join)
            # A cancellation leaves it for the next start, or for the end.
            await settled(self._connection)
            failure = self._connection.exception()
            if failure is not None:
                self._connection = None
                there = ray.is_initialized()
                what = "Ray refused an actor" if there else f"no connection to Ray at {self._config.address!r}"
                raise _failure(what, failure) from failure

    async def _reach(self) -> None:
        host, _, port = self._config.address.rpartition(":")
        if not (host and port.isdigit()) or ray.is_initialized():
            return
        try:
            with anyio.fail_after(_REACH):
                stream = await anyio.connect_tcp(host.strip("[]"), int(port))
        except (OSError, TimeoutError) as exc:
            reason = str(exc) or f"no answer within {_REACH:g} s"
            raise WorkerStartupError(
                f"no Ray cluster at {self._config.address!r}: {reason}", details={"reason": reason}
            ) from exc
        await stream.aclose()

    # ---- what runs in the thread -------------------------------------------------------------------

    def _join(self) -> None:
        config = self._config
        runtime_env = dict(config.runtime_env or {})
        if not ray.is_initialized():
            try:
                with _without_a_word_of_signals():
                    ray.init(
                        address=config.address,
                        namespace=config.namespace,
                        runtime_env=_local_files(runtime_env),
                        log_to_driver=False,
                        configure_logging=False,
                    )
            except BaseException:
                ray.shutdown()
                raise
            self._owned = True
        self._job = _job()
        if self._owned:
            for name in _local_files(runtime_env):
                del runtime_env[name]
        known = ("num_cpus", "num_gpus", "memory")
        amounts = {"num_cpus": 0, **config.resources}
        options: dict[str, Any] = {name: amounts.pop(name) for name in known if name in amounts}
        if "memory" in options:
            options["memory"] = int(options["memory"])
        if runtime_env:
            options["runtime_env"] = runtime_env
        if config.placement_group is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            names = {"num_cpus": "CPU", "num_gpus": "GPU"}
            bundle = {names.get(name, name): amount for name, amount in config.resources.items() if amount}
            if self._group is None:
                self._group = ray.util.placement_group([bundle] * self._most, strategy=config.placement_group)
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._group)
        self._actor_class = ray.remote(WorkerActor).options(
            resources=amounts, max_restarts=0, max_task_retries=0, **options
        )

    def _leave(self) -> None:
        if not ray.is_initialized() or self._job != _job():
            return
        if self._group is not None:
            with contextlib.suppress(RayError):
                ray.util.remove_placement_group(self._group)
        if self._owned:
            ray.shutdown()


@contextlib.contextmanager
def _without_a_word_of_signals() -> Iterator[None]:
    """Suppress Ray's warning that it can't handle SIGTERM in a thread, which it should not."""
    log = logging.getLogger("ray._private.worker")

    def keep(record: logging.LogRecord) -> bool:
        return "SIGTERM" not in record.getMessage()

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _job() -> str:
    """Return an identity of the current connection to Ray; empty if there is none."""
    if not ray.is_initialized():
        return ""
    context = ray.get_runtime_context()
    # Each cluster numbers its jobs separately.
    return f"{context.get_node_id()} {context.get_job_id()}"


def _local_files(runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """Return the local files of a runtime environment, which Ray accepts only with a connection, not with an actor."""
    found = {}
    for name in ("working_dir", "py_modules"):
        value = runtime_env.get(name)
        if any("://" not in str(place) for place in ([value] if isinstance(value, str) else value or ())):
            found[name] = value
    if "working_dir" in found and "excludes" in runtime_env:
        found["excludes"] = runtime_env["excludes"]
    return found


def _failure(what: str, exc: BaseException) -> WorkerStartupError:
    reason = words_of(exc)
    return WorkerStartupError(f"{what}: {reason}", details={"reason": reason})


def _unwanted(made: Future[Any]) -> None:
    """End an actor that is not needed any more."""
    if not made.cancelled() and made.exception() is None:
        end_actor(made.result())
