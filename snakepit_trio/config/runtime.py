"""The options of a runtime."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from snakepit_trio._config_checks import TINY, Options, as_path, as_tuple, check_types, refuse, within
from snakepit_trio.launch.base import is_launcher

from .endpoints import BridgeConfig, MetricsConfig
from .pool import PoolConfig

__all__ = ["RuntimeConfig"]

_STORE = re.compile(r"memory|sqlite:.+|(redis|rediss|valkey|valkeys|unix)://.*")


@attrs.frozen(kw_only=True)
class RuntimeConfig(Options):
    """A runtime: its pools and the services that they share.

    Attributes:
        pools: At least one pool, with distinct names.
        bridge: The gRPC server. None: no server.
        state_dir: The directory in which runs are registered. None: the user's state directory.
        store: The store of sessions and programs: ``"memory"``, ``"sqlite:PATH"`` (survives a restart) or
            ``"redis://HOST"`` (shared by several hosts; extra ``redis``).
        max_sessions, session_ttl: The largest number of sessions, and the time after which an idle session expires. One
            connection of the bridge may open as many sessions as it leaves for others: half when it is alone.
        session_max_entries, session_max_bytes: The largest number of values in one session, and of their bytes.
        max_programs, program_max_bytes, programs_max_bytes, program_ttl: The largest number of programs, the largest
            size of one and of all programs, and the time after which a program expires.
        metrics: Metrics for Prometheus. None: no metrics.
        telemetry: OpenTelemetry spans and metrics: ``"auto"`` if the application has configured OpenTelemetry, or
            ``"off"``.
        redact_patterns: Additional regular expressions of secrets, removed from logs, events, errors and dumps.
        recorder_size: The number of events, and of ended requests, that the flight recorder keeps.
        control: Listen on the control socket, for ``snakepit status``, ``top`` and other commands; only this user can
            connect.
        dump_on_signal: Write a flight recorder dump on SIGUSR1; for a runtime in the main thread.
        host_threads: The number of threads for sync host tools.
        max_host_call_bytes: The largest number of bytes of the arguments of running host calls, over all workers. A
            quarter is divided among the workers; of the rest each worker may use as much as it leaves for others, half
            when it is alone. None: eight times the pools' largest ``max_payload``, and at least 256 MiB.
    """

    pools: Sequence[PoolConfig] = attrs.field(converter=as_tuple)
    bridge: BridgeConfig | None = None
    state_dir: str | None = attrs.field(default=None, converter=as_path)
    store: str = attrs.field(default="memory", repr=False)
    max_sessions: int | None = within(10_000, 1)
    session_ttl: float | None = within(3600.0, TINY)
    session_max_entries: int | None = within(1000, 1)
    session_max_bytes: int | None = within(16 * 1024 * 1024, 1)
    max_programs: int | None = within(1000, 1)
    program_max_bytes: int | None = within(16 * 1024 * 1024, 1)
    programs_max_bytes: int | None = within(256 * 1024 * 1024, 1)
    program_ttl: float | None = within(None, TINY)
    metrics: MetricsConfig | None = None
    telemetry: Literal["auto", "off"] = "auto"
    redact_patterns: Sequence[str] = attrs.field(default=(), converter=as_tuple, repr=False)
    recorder_size: int = within(1000, 0, 1_000_000)
    control: bool = True
    dump_on_signal: bool = False
    host_threads: int = within(32, 1)
    max_host_call_bytes: int | None = within(None, 1024)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.pools, tuple) or not all(isinstance(pool, PoolConfig) for pool in self.pools):
            refuse("pools", self.pools, "a list of PoolConfig")
        check_types(self)
        if not self.pools:
            refuse("pools", [], "at least one pool")
        if not _STORE.fullmatch(self.store):
            refuse("store", "...", "'memory', 'sqlite:PATH' or 'redis://HOST'")
        for pattern in self.redact_patterns:
            try:
                re.compile(pattern)
            except re.error as exc:
                refuse("redact_patterns", "...", f"regular expressions; one has {exc.msg}")
        seen: set[str] = set()
        for pool in self.pools:
            if pool.name in seen:
                refuse("pools", pool.name, "pools with different names")
            seen.add(pool.name)
        objects = [id(pool.launcher) for pool in self.pools if is_launcher(pool.launcher)]
        if len(set(objects)) < len(objects):
            refuse("pools", sorted(seen), "a launcher of its own for each pool, or a function that makes one")
        if len({(pool.ray.address, pool.ray.namespace) for pool in self.pools if pool.ray is not None}) > 1:
            refuse("pools", sorted(seen), "one Ray cluster and namespace: a process can be connected to only one")

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> RuntimeConfig:
        """Read a configuration file, and override it from the environment.

        Args:
            path: A TOML file: ``snakepit.toml``, or a ``pyproject.toml`` with ``[tool.snakepit]``. None:
                ``snakepit.toml``, else ``pyproject.toml``, in the current directory.
            environ: Variables such as ``SNAKEPIT_POOLS__DEFAULT__SIZE=8``; by default those of this process.

        Raises:
            ConfigError: The configuration is invalid. The error names the file or variable, the key, and what was
                expected.
        """
        from .load import load

        return load(cls, None if path is None else Path(path), os.environ if environ is None else environ)
