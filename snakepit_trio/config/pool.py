"""The options of a pool."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import attrs

from snakepit_trio._config_checks import TINY, Options, as_path, as_tuple, check_types, refuse, within
from snakepit_trio.hardware import visibility
from snakepit_trio.launch.base import Launcher, LauncherFactory
from snakepit_trio.launch.registered import LOCAL, check_launcher
from snakepit_trio.policies.options import TIMEOUTS, CircuitConfig, HedgeConfig, LimitConfig, RetryConfig

from .adapter import refuse_adapter
from .ray import RayConfig

__all__ = ["PoolConfig"]

#: The default ``threads`` of the profile "thread".
_THREADS = 10
_ADAPTER = re.compile(r"[^\s:/\\.][^\s:/\\]*(?::[A-Za-z_][A-Za-z0-9_.]*)?")
_POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _start_method() -> str:
    return "fork_server" if sys.platform == "linux" else "spawn"


@attrs.frozen(kw_only=True)
class PoolConfig(Options):
    """One pool of workers.

    Attributes:
        adapter: ``"package.module"`` or ``"package.module:Class"``, imported in the workers.
        command: Instead of an adapter: a program with arguments that serves ``WorkerService`` in any language; see
            docs/foreign-workers.md.
        name: Letters, digits, ``_ . -``; at most 64 characters.
        size: The number of workers; by default the number of CPU cores that this process may use.
        min_size, max_size: With a ``max_size`` the pool scales with its load between these two. ``size`` is the initial
            number, and the minimum unless ``min_size`` is set. With a minimum of 0 an idle pool has no workers, and its
            next request starts one. Workers to which strict sessions are bound are kept.
        target_wait: When a request has waited for a worker for this time, the pool starts another worker.
        scale_down_after: Workers that the load of this last time did not need are stopped.
        max_queue: The largest number of waiting requests; further ones are refused at once. None: no limit. One
            connection of the bridge may use as many places as it leaves for others: half when it is alone.
        timeouts: The profile of defaults for the next three options; see docs/resilience.md.
        queue_timeout: The longest wait of a request for a worker. None: as long as its ``timeout`` allows.
        timeout: The default time limit of a whole call, including its wait.
        stream_timeout: The default time limit of a whole stream.
        startup_timeout: The time in which a worker must become ready. None: no limit.
        profile: ``"process"``: a worker runs one call at a time, for isolation; ``"thread"``: a worker runs 10 calls at
            a time. ``threads`` overrides both.
        threads: The number of calls that one worker runs at a time; by default as the profile says.
        prefetch: The number of calls that a worker with one thread may hold besides the running one, if its tools are
            so short that the round trip matters. Prefetched calls still count as queued, and are recalled when the
            running call turns out to be long. 0: no prefetching.
        start_method: ``"fork_server"``: workers are forked from a template that has imported the adapter; ``"spawn"``:
            each worker is a new interpreter.
        worker_backend: The event loop for async tools; ``"auto"`` chooses by the imports of the adapter's module.
        transport: ``"unix"`` or ``"tcp"`` sockets; ``"auto"`` is unix where available.
        launcher: The source of worker processes: ``"local"``, ``"ray"`` for a Ray cluster, or a name that an installed
            distribution registers in the entry-point group ``snakepit_trio.launchers``; or a
            :class:`~snakepit_trio.launchers.Launcher` for this pool alone, or a class or function that creates one each
            time the pool opens. See docs/guides/launchers.md.
        ray: The cluster and the resources of each worker, for the launcher ``"ray"``; see docs/ray.md.
        affinity: The default affinity of sessions.
        cancel_grace: The time in which a cancelled tool must stop.
        on_cancel: What happens after ``cancel_grace``: the worker is replaced (``"kill"``), or the call is left to
            finish (``"abandon"``).
        stop_grace: The time for running calls when the pool closes, and for a worker when it is told to stop.
        max_requests, max_age, max_rss: A worker is replaced after this number of calls, this time, or above this number
            of bytes of resident memory. It serves until its replacement is ready, so it may serve a few more calls; no
            call waits or fails because of a replacement.
        heartbeat_interval: The time between two heartbeats.
        heartbeat_misses: A worker that has missed this number of heartbeats is replaced (1: after one and a half
            intervals).
        heartbeat_while_busy: Expect heartbeats also while a call runs. CPU time of the worker's process then counts as
            a sign of life too, because C code may hold the GIL while it computes. Set it to False for code that holds
            the GIL and waits; a worker that is stopped or deadlocked during a call is then found only by the call's
            ``timeout``.
        health_interval: The time between two health checks. None: no checks.
        restart_limit, restart_window: A slot fails after more than this number of failed starts in this time. A failed
            start is a worker that did not become ready, or ended soon after without having begun a call; a worker that
            a call has ended does not count. A limit of None: the slot never fails, and restarts after growing pauses.
        backoff_base, backoff_max: The pause before a second consecutive restart, and the pause to which it grows. If
            the workers can start and calls end them, the pause is at most a tenth of ``queue_timeout``, or one second
            without it.
        spares: The number of additional warm workers without calls; a spare replaces a worker that ends at once.
        surge: The number of workers above ``size`` that may exist while workers are replaced.
        poison_limit: A request that has ended this number of workers is refused. None: no limit.
        aging: This time of waiting raises a request's priority by one. None: waiting has no effect on priority.
        fair: Sessions take turns in the queue.
        reject_hopeless: Refuse a request at once if its deadline would pass in the queue, estimated from recent call
            durations.
        cancel_set_size, cancel_set_ttl: The number of cancelled requests that are remembered, and for how long.
        max_payload: The largest size of parameters, result or chunk.
        shm_limit: The largest amount of shared memory for large arrays and bytes in the whole pool; further values are
            sent inline. 0: no shared memory. None: as much as the system has.
        unserializable: The handling of a result that can't be sent: ``"error"``, or ``"marker"``, a map that names its
            type.
        worker_output: The handling of output, logs and warnings of tools: ``"auto"`` prints them on standard error,
            each line with the worker's name, unless the application's logging takes them; ``"stderr"`` prints them;
            ``"logging"`` logs them as ``snakepit_trio.worker``; ``"discard"`` does neither. See docs/observability.md.
        python: Another interpreter for the workers, with snakepit_trio installed. Implies ``"spawn"``.
        devices: Assigns one accelerator to the worker of each slot, in turn, by environment variables: ``["cuda:0",
            "cuda:1"]``, or ``"auto"`` for all that this process may use. ``env`` takes precedence. The adapter must
            initialise its device in ``setup``, because its import may happen before the assignment.
        env: Additional environment variables of the workers.
        cwd: The working directory of the workers.
        retry, circuit, limits, hedge: The policies; see :mod:`snakepit_trio.policies`. Each is off by default.
    """

    adapter: str | None = None
    command: Sequence[str] | None = attrs.field(default=None, converter=as_tuple)
    name: str = "default"
    size: int = attrs.field(factory=_cores, metadata={"range": (1, 10_000)})
    min_size: int | None = within(None, 0, 10_000)
    max_size: int | None = within(None, 1, 10_000)
    target_wait: float = within(0.1, TINY)
    scale_down_after: float = within(60.0, 0.01)
    max_queue: int | None = within(1000, 0)
    timeouts: Literal["balanced", "production", "production_strict", "development", "ml_inference", "batch"] = (
        "balanced"
    )
    queue_timeout: float | None = within(None, TINY)
    timeout: float | None = within(300.0, TINY)
    stream_timeout: float | None = within(900.0, TINY)
    startup_timeout: float | None = within(30.0, TINY)
    profile: Literal["process", "thread"] = "process"
    threads: int = within(1, 1, 1024)
    prefetch: int = within(16, 0, 256)
    start_method: Literal["fork_server", "spawn"] = attrs.field(factory=_start_method)
    worker_backend: Literal["auto", "trio", "asyncio"] = "auto"
    transport: Literal["auto", "unix", "tcp"] = "auto"
    launcher: str | Launcher | LauncherFactory = attrs.field(default=LOCAL, metadata={"check": check_launcher})
    ray: RayConfig | None = None
    affinity: Literal["hint", "strict_queue", "strict_fail_fast"] = "hint"
    cancel_grace: float = within(1.0, 0)
    on_cancel: Literal["kill", "abandon"] = "kill"
    stop_grace: float = within(5.0, 0)
    max_requests: int | None = within(None, 1)
    max_age: float | None = within(None, TINY)
    max_rss: int | None = within(None, 1)
    heartbeat_interval: float = within(2.0, 0.01)
    heartbeat_misses: int = within(3, 1)
    heartbeat_while_busy: bool = True
    health_interval: float | None = within(30.0, 0.01)
    restart_limit: int | None = within(5, 0)
    restart_window: float = within(10.0, TINY)
    backoff_base: float = within(0.1, 0)
    backoff_max: float = within(10.0, 0)
    spares: int = within(0, 0, 1000)
    surge: int = within(1, 1)
    poison_limit: int | None = within(2, 1)
    aging: float | None = within(0.5, TINY)
    fair: bool = False
    reject_hopeless: bool = False
    cancel_set_size: int = within(1024, 0)
    cancel_set_ttl: float = within(60.0, 0)
    max_payload: int = within(64 * 1024 * 1024, 1024, 1 << 31)
    shm_limit: int | None = within(1 << 30, 0)
    unserializable: Literal["error", "marker"] = "error"
    worker_output: Literal["auto", "stderr", "logging", "discard"] = "auto"
    python: str | None = attrs.field(default=None, converter=as_path)
    devices: Literal["auto"] | tuple[str, ...] | None = attrs.field(default=None, converter=as_tuple)
    env: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    cwd: str | None = attrs.field(default=None, converter=as_path)
    retry: RetryConfig | None = None
    circuit: CircuitConfig | None = None
    limits: Sequence[LimitConfig] = attrs.field(default=(), converter=as_tuple)
    hedge: HedgeConfig | None = None

    def __attrs_post_init__(self) -> None:
        if self.adapter is not None and not isinstance(self.adapter, str):
            refuse_adapter(self.adapter)
        check_types(self)
        for name, limit in TIMEOUTS[self.timeouts]._asdict().items():
            if name not in self._given:
                object.__setattr__(self, name, limit)
        if self.profile == "thread" and "threads" not in self._given:
            object.__setattr__(self, "threads", _THREADS)
        if self.adapter is None and self.command is None:
            refuse("adapter", None, "a value, or a command instead")
        if self.adapter is not None and self.command is not None:
            refuse("command", list(self.command), "no command beside an adapter")
        if self.command is not None:
            self._check_command(self.command)
        if self.adapter is not None and not _ADAPTER.fullmatch(self.adapter):
            refuse("adapter", self.adapter, "'package.module' or 'package.module:Class', no path")
        if self.adapter is not None and self.adapter.partition(":")[0] == "__main__":
            # In a worker, `__main__` is the worker's own module.
            refuse("adapter", self.adapter, "the name under which the workers can import the script, or another module")
        if not _POOL_NAME.fullmatch(self.name):
            refuse("name", self.name, "a letter, then up to 63 letters, digits, '_', '.' or '-'")
        if self.max_size is not None and self.max_size < self.size:
            refuse("max_size", self.max_size, f"at least size, which is {self.size}")
        if self.min_size is not None and (self.max_size is None or self.min_size > self.size):
            refuse("min_size", self.min_size, f"at most size, which is {self.size}, and a max_size beside it")
        if self.min_size == 0 and self.max_queue == 0:
            refuse(
                "max_queue", 0, "at least 1 with min_size=0: a pool without workers is woken by a request that waits"
            )
        if isinstance(self.devices, tuple):
            if not self.devices:
                refuse("devices", [], "'auto' or at least one device")
            for device in self.devices:
                try:
                    visibility(device)
                except ValueError:
                    refuse("devices", device, "devices such as 'cuda:0'")
        if self.devices is not None and self.spares:
            refuse("spares", self.spares, "0 when devices are given: a warm worker would be tied to the wrong one")
        if self.launcher == "ray":
            self._check_ray()
        elif self.ray is not None:
            refuse("ray", "a RayConfig", "launcher='ray' beside it")
        elif self.launcher != LOCAL and self.command is not None:
            refuse("command", list(self.command), "an adapter: only launcher='local' starts commands")
        for name, value in (self.env or {}).items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                refuse("env", name, "names without '=' and no NUL in names or values")

    def _check_ray(self) -> None:
        if self.ray is None:
            object.__setattr__(self, "ray", RayConfig())
        if self.command is not None:
            refuse("command", list(self.command), "an adapter: Ray starts no commands")
        if self.devices is not None:
            refuse("devices", self.devices, "none: Ray gives each worker its devices, by num_gpus")
        if self.transport == "unix":
            refuse("transport", self.transport, "'auto' or 'tcp' with launcher='ray'")

    def _check_command(self, command: Sequence[str]) -> None:
        if not command or not command[0] or any("\0" in part for part in command):
            refuse("command", list(command), "a program and its arguments, without NUL")
        if self.python is not None:
            refuse("python", self.python, "no interpreter beside a command, which names its own")
