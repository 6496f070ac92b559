"""Configuration: frozen values, checked when they are made.

Times are in seconds, sizes in bytes; None means no limit. A value that is refused raises
:class:`~snakepit_trio.errors.ConfigError`, which names the key, what was given and what was expected.
"""

from __future__ import annotations

import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from snakepit_trio.errors import ConfigError
from snakepit_trio.hardware import visibility

__all__ = ["BridgeConfig", "PoolConfig", "RuntimeConfig", "TlsConfig"]

_ADAPTER = re.compile(r"[^\s:]+(?::[A-Za-z_][A-Za-z0-9_.]*)?")
_POOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_STORE = re.compile(r"memory|sqlite:.+|(redis|rediss|valkey|valkeys|unix)://.*")
_ADDRESS = re.compile(r"unix:.+|tcp:[^:]+:\d{1,5}|tcp:\[[0-9A-Fa-f:]+\]:\d{1,5}")


def _refuse(key: str, value: object, expected: str) -> typing.NoReturn:
    shown = repr(value)
    raise ConfigError(
        f"{key}: expected {expected}, got {shown if len(shown) <= 100 else shown[:97] + '...'}",
        details={"source": "code", "key": key, "expected": expected},
    )


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if hint is None or hint is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if origin is not None:
        return {"Mapping": "a mapping of text to text", "tuple": "a list"}.get(origin.__name__, str(hint))
    return {int: "an int", float: "a number", str: "text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type, strictly: True is no int, nan is no number; an int is a float."""
    origin = typing.get_origin(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in typing.get_args(hint))
    if hint is float:
        return type(value) in (int, float) and not math.isnan(value)  # type: ignore[arg-type]
    if hint in (int, str, bool):
        return type(value) is hint
    if origin is not None and origin is not tuple and issubclass(origin, Sequence):
        return isinstance(value, tuple)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(type(k) is str and type(v) is str for k, v in value.items())
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    return isinstance(value, hint)


def _check_types(instance: Any) -> None:
    hints = _hints(type(instance))
    for field in attrs.fields(type(instance)):
        value = getattr(instance, field.name)
        if not _fits(value, hints[field.name]):
            _refuse(field.name, "..." if not field.repr else value, _describe(hints[field.name]))
        low, high = field.metadata.get("range", (None, None))
        if value is not None and low is not None and not low <= value <= high:
            top = "" if high == math.inf else f" to {high:g}"
            _refuse(field.name, value, f"at least {low:g}{top}" if not top else f"{low:g}{top}")


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _within(default: Any, low: float, high: float = math.inf) -> Any:
    return attrs.field(default=default, metadata={"range": (low, high)})


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _start_method() -> str:
    return "fork_server" if sys.platform == "linux" else "spawn"


_TINY = 1e-3


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@attrs.frozen(kw_only=True)
class PoolConfig:
    """One pool of workers.

    Attributes:
        adapter: ``"package.module"`` or ``"package.module:Class"``, imported in the workers.
        name: Letters, digits, ``_ . -``; at most 64.
        size: How many workers; by default the CPU cores that this process may use.
        max_queue: How many requests may wait; more are refused at once. None: no limit.
        queue_timeout: How long a request may wait for a worker.
        timeout: For a whole call, waiting included, when the caller gives none.
        stream_timeout: For a whole stream, when the caller gives none.
        startup_timeout: For a worker to become ready.
        profile: ``"process"``: isolation comes first; ``"thread"``: workers are meant to run several calls at once.
        threads: Calls that one worker runs at once, whatever the profile.
        start_method: ``"fork_server"``: forked from a template that has imported the adapter; ``"spawn"``: a new interpreter.
        worker_backend: The event loop for async tools; ``"auto"`` goes by what the adapter's module imports.
        transport: ``"unix"`` or ``"tcp"`` sockets; ``"auto"`` is unix where there is one.
        launcher: Where worker processes come from; ``"local"``.
        affinity: What a session is bound by unless it says otherwise.
        cancel_grace: How long a cancelled tool may take to stop.
        on_cancel: What then happens: its worker is replaced (``"kill"``), or left to finish (``"abandon"``).
        stop_grace: How long running calls may take when the pool closes, and a worker when it is asked to stop.
        max_requests, max_age, max_rss: A worker is replaced after so many calls, seconds, bytes of resident memory.
        heartbeat_interval: Between two signs of life.
        heartbeat_misses: After so many intervals without one the worker is replaced.
        heartbeat_while_busy: Also while a call runs; False for tools in C code that hold the GIL for long.
        health_interval: Between two health checks; None: none.
        restart_limit, restart_window: A slot whose workers end unbidden more often than that many times in that many
            seconds has failed.
        backoff_base, backoff_max: The pause before a second restart in a row, and what it grows to.
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
        python: Another interpreter for the workers; it must have snakepit_trio installed. Implies ``"spawn"``.
        devices: Ties the worker of each slot to one accelerator, in turn, by the environment: ``["cuda:0", "cuda:1"]``, or
            ``"auto"`` for all that this process may use. What ``env`` says of the same variable wins. An adapter that
            initialises its device at import is too early; ``setup`` is the place.
        env: Added to the workers' environment.
        cwd: The workers' directory.
    """

    adapter: str
    name: str = "default"
    size: int = attrs.field(factory=_cores, metadata={"range": (1, 10_000)})
    max_queue: int | None = _within(1000, 0)
    queue_timeout: float | None = _within(10.0, _TINY)
    timeout: float | None = _within(300.0, _TINY)
    stream_timeout: float | None = _within(900.0, _TINY)
    startup_timeout: float = _within(30.0, _TINY)
    profile: Literal["process", "thread"] = "process"
    threads: int = _within(1, 1, 1024)
    start_method: Literal["fork_server", "spawn"] = attrs.field(factory=_start_method)
    worker_backend: Literal["auto", "trio", "asyncio"] = "auto"
    transport: Literal["auto", "unix", "tcp"] = "auto"
    launcher: Literal["local"] = "local"
    affinity: Literal["hint", "strict_queue", "strict_fail_fast"] = "hint"
    cancel_grace: float = _within(1.0, 0)
    on_cancel: Literal["kill", "abandon"] = "kill"
    stop_grace: float = _within(5.0, 0)
    max_requests: int | None = _within(None, 1)
    max_age: float | None = _within(None, _TINY)
    max_rss: int | None = _within(None, 1)
    heartbeat_interval: float = _within(2.0, 0.01)
    heartbeat_misses: int = _within(3, 1)
    heartbeat_while_busy: bool = True
    health_interval: float | None = _within(30.0, 0.01)
    restart_limit: int = _within(5, 0)
    restart_window: float = _within(10.0, _TINY)
    backoff_base: float = _within(0.1, 0)
    backoff_max: float = _within(10.0, 0)
    spares: int = _within(0, 0, 1000)
    surge: int = _within(1, 1)
    poison_limit: int | None = _within(2, 1)
    aging: float | None = _within(30.0, _TINY)
    fair: bool = False
    reject_hopeless: bool = False
    cancel_set_size: int = _within(1024, 0)
    cancel_set_ttl: float = _within(60.0, 0)
    max_payload: int = _within(64 * 1024 * 1024, 1024, 1 << 31)
    shm_limit: int | None = _within(1 << 30, 0)
    unserializable: Literal["error", "marker"] = "error"
    python: str | None = None
    devices: Literal["auto"] | tuple[str, ...] | None = attrs.field(default=None, converter=_as_tuple)
    env: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    cwd: str | None = None

    def __attrs_post_init__(self) -> None:
        _check_types(self)
        if not _ADAPTER.fullmatch(self.adapter):
            _refuse("adapter", self.adapter, "'package.module' or 'package.module:Class'")
        if not _POOL_NAME.fullmatch(self.name):
            _refuse("name", self.name, "a letter, then up to 63 letters, digits, '_', '.' or '-'")
        if isinstance(self.devices, tuple):
            if not self.devices:
                _refuse("devices", [], "'auto' or at least one device")
            for device in self.devices:
                try:
                    visibility(device)
                except ValueError:
                    _refuse("devices", device, "devices such as 'cuda:0'")
        if self.devices is not None and self.spares:
            _refuse("spares", self.spares, "0 when devices are given: a warm worker would be tied to the wrong one")
        for name, value in (self.env or {}).items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                _refuse("env", name, "names without '=' and no NUL in names or values")


@attrs.frozen(kw_only=True)
class TlsConfig:
    """Files for TLS, in PEM: our certificate and key, and the authority that clients' certificates must come from."""

    cert: str
    key: str
    ca: str | None = None

    def __attrs_post_init__(self) -> None:
        _check_types(self)


@attrs.frozen(kw_only=True)
class BridgeConfig:
    """The gRPC front door.

    Attributes:
        address: ``"unix:PATH"`` or ``"tcp:HOST:PORT"``; port 0 is any free one. None: a Unix socket in the run's directory.
        token: What clients send as ``authorization: Bearer TOKEN``; None: made anew for each run.
        tls: For TCP.
    """

    address: str | None = None
    token: str | None = attrs.field(default=None, repr=False)
    tls: TlsConfig | None = None

    def __attrs_post_init__(self) -> None:
        _check_types(self)
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            _refuse("address", self.address, "unix:PATH or tcp:HOST:PORT")


@attrs.frozen(kw_only=True)
class RuntimeConfig:
    """A runtime: its pools and what they share.

    Attributes:
        pools: At least one; their names differ.
        bridge: The gRPC front door; None: none.
        state_dir: Where runs are registered; None: the user's state directory.
        wire: How the host moves bytes: ``"auto"``, ``"trio"``, ``"trio-asyncio"`` or ``"asyncio"``.
        store: Where sessions and programs are kept: ``"memory"``, ``"sqlite:PATH"`` (survives a restart) or
            ``"redis://HOST"`` (shared by several hosts; extra ``redis``).
        max_sessions, session_ttl: How many sessions there may be, and how long an idle one lives.
        session_max_entries, session_max_bytes: What one session may hold.
        max_programs, program_max_bytes, programs_max_bytes, program_ttl: What the program store may hold: how many, how
            large one, how large all, how long.
    """

    pools: Sequence[PoolConfig] = attrs.field(converter=_as_tuple)
    bridge: BridgeConfig | None = None
    state_dir: str | None = None
    wire: Literal["auto", "trio", "trio-asyncio", "asyncio"] = "auto"
    store: str = attrs.field(default="memory", repr=False)
    max_sessions: int | None = _within(10_000, 1)
    session_ttl: float | None = _within(3600.0, _TINY)
    session_max_entries: int | None = _within(1000, 1)
    session_max_bytes: int | None = _within(16 * 1024 * 1024, 1)
    max_programs: int | None = _within(1000, 1)
    program_max_bytes: int | None = _within(16 * 1024 * 1024, 1)
    programs_max_bytes: int | None = _within(256 * 1024 * 1024, 1)
    program_ttl: float | None = _within(None, _TINY)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.pools, tuple) or not all(isinstance(pool, PoolConfig) for pool in self.pools):
            _refuse("pools", self.pools, "a list of PoolConfig")
        _check_types(self)
        if not self.pools:
            _refuse("pools", [], "at least one pool")
        if not _STORE.fullmatch(self.store):
            _refuse("store", "...", "'memory', 'sqlite:PATH' or 'redis://HOST'")
        seen: set[str] = set()
        for pool in self.pools:
            if pool.name in seen:
                _refuse("pools", pool.name, "pools with different names")
            seen.add(pool.name)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> RuntimeConfig:
        """Read a configuration file, and the environment over it.

        Args:
            path: A TOML file: ``snakepit.toml``, or a ``pyproject.toml`` with ``[tool.snakepit]``. None: ``snakepit.toml``,
                then ``pyproject.toml``, in the current directory.
            environ: Variables such as ``SNAKEPIT_POOLS__DEFAULT__SIZE=8``; by default this process's.

        Raises:
            ConfigError: Names the file or variable, the key, and what was expected.
        """
        from snakepit_trio._config_load import load

        return load(cls, None if path is None else Path(path), os.environ if environ is None else environ)
