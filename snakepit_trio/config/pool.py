"""The options of a pool."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from snakepit_trio._config_checks import TINY, as_path, as_tuple, check_types, refuse, within
from snakepit_trio.hardware import visibility
from snakepit_trio.launch.base import Launcher, LauncherFactory
from snakepit_trio.launch.registered import LOCAL, check_launcher
from snakepit_trio.policies.options import TIMEOUTS, CircuitConfig, HedgeConfig, LimitConfig, RetryConfig

from .ray import RayConfig

__all__ = ["PoolConfig"]

#: What a worker of the profile "thread" runs at once.
_THREADS = 10
_ADAPTER = re.compile(r"[^\s:/\\.][^\s:/\\]*(?::[A-Za-z_][A-Za-z0-9_.]*)?")
_POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _start_method() -> str:
    return "fork_server" if sys.platform == "linux" else "spawn"


class _Remembers:
    """Knows which options it was made with, and which have their defaults."""

    __slots__ = ("_given",)
    _given: frozenset[str]

    def __new__(cls, **options: object) -> Any:
        self = super().__new__(cls)
        object.__setattr__(self, "_given", frozenset(options))
        return self


@attrs.frozen(kw_only=True)
class PoolConfig(_Remembers):
    """One pool of workers.

    Attributes:
        adapter: ``"package.module"`` or ``"package.module:Class"``, imported in the workers.
        command: In place of an adapter: a program and its arguments that serve ``WorkerService`` in any language, see
            docs/foreign-workers.md.
        name: Letters, digits, ``_ . -``; at most 64.
        size: How many workers; by default the CPU cores that this process may use.
        min_size, max_size: With a ``max_size`` the pool goes by its load, between these two; ``size`` is what it begins with,
            and the least unless ``min_size`` says otherwise. With a least of 0 an idle pool has no workers, and its next
            request wakes it. Workers that strict sessions are tied to stay.
        target_wait: A request that has waited so long for a worker gets the pool another one.
        scale_down_after: Workers that the load of so many seconds did not need go.
        max_queue: How many requests may wait; more are refused at once. None: no limit. Of one connection of the bridge no more
            wait than it leaves places for others: half of them when it is alone.
        timeouts: The profile that the next three come from where they are not given; see docs/resilience.md.
        queue_timeout: How long a request may wait for a worker; None: as long as its ``timeout`` allows.
        timeout: For a whole call, waiting included, when the caller gives none.
        stream_timeout: For a whole stream, when the caller gives none.
        startup_timeout: For a worker to become ready. None: no limit.
        profile: ``"process"``: isolation comes first, a worker runs one call at once; ``"thread"``: several, 10 of them. In
            either, ``threads`` has the last word.
        threads: Calls that one worker runs at once; by default as the profile says.
        prefetch: Calls that a worker with one thread may hold besides the one that it runs, when its tools are so short that
            the way to it and back counts. They are still queued, and are taken back when the call turns out long. 0: none.
        start_method: ``"fork_server"``: forked from a template that has imported the adapter; ``"spawn"``: a new interpreter.
        worker_backend: The event loop for async tools; ``"auto"`` goes by what the adapter's module imports.
        transport: ``"unix"`` or ``"tcp"`` sockets; ``"auto"`` is unix where there is one.
        launcher: Where worker processes come from: ``"local"``, ``"ray"`` for a Ray cluster, which places them, or a name that an
            installed distribution registers in the entry-point group ``snakepit_trio.launchers``. Or a
            :class:`~snakepit_trio.launchers.Launcher` for this pool alone, or a class or function that makes one each time
            the pool opens. See docs/guides/launchers.md.
        ray: What they need there, and where the cluster is; see docs/ray.md.
        affinity: What a session is bound by unless it says otherwise.
        cancel_grace: How long a cancelled tool may take to stop.
        on_cancel: What then happens: its worker is replaced (``"kill"``), or left to finish (``"abandon"``).
        stop_grace: How long running calls may take when the pool closes, and a worker when it is asked to stop.
        max_requests, max_age, max_rss: A worker is replaced after so many calls, seconds, bytes of resident memory. It goes on
            until its replacement is ready, and so serves a few calls more; no call waits, or fails, because of it.
        heartbeat_interval: Between two signs of life.
        heartbeat_misses: After so many intervals without one the worker is replaced (with 1: after one and a half).
        heartbeat_while_busy: Also while a call runs. Then CPU time that the worker's process uses is a sign of life, too: C code
            may hold the GIL, and compute, for as long as it likes. False for code that holds it and waits: a worker that is
            stopped or deadlocked under a call is then found only by the call's ``timeout``.
        health_interval: Between two health checks; None: none.
        restart_limit, restart_window: A slot in which more than that many starts have failed in that many seconds has failed:
            workers that did not become ready, or ended soon after without having begun a call. Workers that a call has ended
            don't count. A limit of None: it never fails, and goes on restarting after pauses that grow.
        backoff_base, backoff_max: The pause before a second restart in a row, and what it grows to; when the workers can
            start, and calls end them, no more than a tenth of ``queue_timeout``, or a second without one.
        spares: How many workers more are kept warm, without calls, to take the place of one that ends at once.
        surge: How many workers above ``size`` there may be while workers are replaced.
        poison_limit: A request that has ended so many workers is refused; None: no limit.
        aging: Seconds of waiting that are worth one level of priority; None: priority is all.
        fair: Sessions take turns in the queue.
        reject_hopeless: Refuse a request at once whose deadline would pass while it waits, by how long calls took of late.
        cancel_set_size, cancel_set_ttl: How many cancelled requests are remembered, and how long.
        max_payload: Largest parameters, result or chunk.
        shm_limit: Shared memory for large arrays and bytes, in all the pool; what does not fit travels inline. 0: none.
            None: as much as the system has.
        unserializable: What becomes of a result that can't be sent: ``"error"``, or ``"marker"``, a map in its place that
            names its type.
        worker_output: What becomes of what tools print, log and warn of: ``"auto"`` shows it on standard error, with the worker's
            name before each line, unless the application's logging takes it; ``"stderr"`` shows it, ``"logging"`` logs it, as
            ``snakepit_trio.worker``, ``"discard"`` does neither. See docs/observability.md.
        python: Another interpreter for the workers; it must have snakepit_trio installed. Implies ``"spawn"``.
        devices: Ties the worker of each slot to one accelerator, in turn, by the environment: ``["cuda:0", "cuda:1"]``, or
            ``"auto"`` for all that this process may use. What ``env`` says of the same variable wins. An adapter that
            initialises its device at import is too early; ``setup`` is the place.
        env: Added to the workers' environment.
        cwd: The workers' directory.
        retry, circuit, limits, hedge: See :mod:`snakepit_trio.policies`; each off unless given.
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
            # In a worker that name is the worker's own.
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
