"""The options of a pool as keywords, for type checkers: :func:`snakepit_trio.open_pool` takes every one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from snakepit_trio.launch.base import Launcher, LauncherFactory
from snakepit_trio.policies.options import CircuitConfig, HedgeConfig, LimitConfig, RetryConfig

from .ray import RayConfig

__all__ = ["PoolOptions"]


class PoolOptions(TypedDict, total=False):
    """The fields of :class:`~snakepit_trio.PoolConfig` but the adapter; a test compares them."""

    command: Sequence[str] | None
    name: str
    size: int
    min_size: int | None
    max_size: int | None
    target_wait: float
    scale_down_after: float
    max_queue: int | None
    timeouts: Literal["balanced", "production", "production_strict", "development", "ml_inference", "batch"]
    queue_timeout: float | None
    timeout: float | None
    stream_timeout: float | None
    startup_timeout: float | None
    profile: Literal["process", "thread"]
    threads: int
    prefetch: int
    start_method: Literal["fork_server", "spawn"]
    worker_backend: Literal["auto", "trio", "asyncio"]
    transport: Literal["auto", "unix", "tcp"]
    launcher: str | Launcher | LauncherFactory
    ray: RayConfig | None
    affinity: Literal["hint", "strict_queue", "strict_fail_fast"]
    cancel_grace: float
    on_cancel: Literal["kill", "abandon"]
    stop_grace: float
    max_requests: int | None
    max_age: float | None
    max_rss: int | None
    heartbeat_interval: float
    heartbeat_misses: int
    heartbeat_while_busy: bool
    health_interval: float | None
    restart_limit: int | None
    restart_window: float
    backoff_base: float
    backoff_max: float
    spares: int
    surge: int
    poison_limit: int | None
    aging: float | None
    fair: bool
    reject_hopeless: bool
    cancel_set_size: int
    cancel_set_ttl: float
    max_payload: int
    shm_limit: int | None
    unserializable: Literal["error", "marker"]
    worker_output: Literal["auto", "stderr", "logging", "discard"]
    python: str | os.PathLike[str] | None
    devices: Literal["auto"] | Sequence[str] | None
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    retry: RetryConfig | None
    circuit: CircuitConfig | None
    limits: Sequence[LimitConfig]
    hedge: HedgeConfig | None
