"""The public names that never change: what an application is written against, with its parameters and defaults."""

from __future__ import annotations

import inspect
from typing import Any

import attrs
import pytest
from typer.main import get_command

import snakepit_trio as sp
from snakepit_trio.cli import build
from snakepit_trio.client.session import RemoteSession
from snakepit_trio.hardware import Accelerator, Cpu, Hardware, Memory
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.pool.fleet.scaling import Load
from snakepit_trio.sessions.directory import SessionDirectory
from snakepit_trio.sessions.programs import ProgramStore
from snakepit_trio.sessions.records import Limits, ProgramInfo, SessionInfo
from snakepit_trio.supervision.exits import Exit
from snakepit_trio.supervision.runs import RunEntry
from snakepit_trio.tools.registry import HostTool, ToolRegistry

#: Options of a pool that have the same default on every machine.
POOL = {
    "name": "default", "max_queue": 1000, "queue_timeout": None, "timeout": 300.0, "stream_timeout": 900.0,
    "startup_timeout": 30.0, "profile": "process", "threads": 1, "worker_backend": "auto", "transport": "auto",
    "launcher": "local", "affinity": "hint", "cancel_grace": 1.0, "on_cancel": "kill", "stop_grace": 5.0,
    "max_requests": None, "max_age": None, "max_rss": None, "heartbeat_interval": 2.0, "heartbeat_misses": 3,
    "heartbeat_while_busy": True, "health_interval": 30.0, "restart_limit": 5, "restart_window": 10.0, "poison_limit": 2,
    "cancel_set_size": 1024, "cancel_set_ttl": 60.0, "max_payload": 64 * 1024 * 1024,
}  # fmt: skip
QUOTAS = [
    "max_sessions", "session_max_entries", "session_max_bytes", "max_programs", "program_max_bytes", "programs_max_bytes",
    "program_ttl",
]  # fmt: skip
#: Parameters in their order; those after ``*`` by name only.
CALLS: dict[Any, str] = {
    sp.Pool.execute: "tool params * timeout priority metadata idempotent",
    sp.Pool.stream: "tool params * timeout priority metadata",
    sp.Pool.map: "tool inputs * limit ordered return_errors timeout priority metadata idempotent",
    sp.Pool.session: "id * affinity ttl metadata",
    sp.Pool.resize: "size",
    sp.Pool.wait_ready: "n timeout",
    sp.Pool.rolling_restart: "",
    sp.Pool.stats: "",
    sp.Pool.workers: "",
    sp.Session.execute: "tool params",
    sp.Session.stream: "tool params",
    sp.Session.put: "key value",
    sp.Session.get: "key default",
    sp.Session.close: "",
    sp.ToolContext.call_host: "name params",
    sp.ToolContext.call_host_sync: "name params",
    sp.ToolContext.emit: "event measurements metadata",
    sp.ToolContext.raise_if_cancelled: "",
    sp.Runtime.pool: "name",
    ToolRegistry.register: "name fn * description metadata critical replace",
    ToolRegistry.register_many: "functions",
    ToolRegistry.unregister: "name",
    ToolRegistry.list: "",
    ProgramStore.put: "name data session ttl",
    ProgramStore.get: "name",
    ProgramStore.delete: "name",
    ProgramStore.list: "",
    SessionDirectory.get: "id",
    SessionDirectory.list: "",
    SessionDirectory.close: "id",
    sp.tool: "function * description critical idempotent",
    sp.run: "main config",
}
COMMANDS = [
    "demo",
    "map",
    "call",
    "serve",
    "mcp",
    "status",
    "top",
    "doctor",
    "diagnose",
    "cleanup",
    "new",
    "tools",
    "bench",
]


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__qualname__)
def test_what_is_called_takes_what_it_always_took(function: Any) -> None:
    has = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    free, _, named = (words.split() for words in CALLS[function].partition("*"))
    assert [p.name for p in has if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(free)] == free
    assert set(named) <= {p.name for p in has if p.kind is p.KEYWORD_ONLY}
    added = [p for p in has if p.name not in (*free, *named) and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    assert all(p.default is not p.empty for p in added)


def test_options_and_their_defaults() -> None:
    fields = {field.name: field.default for field in attrs.fields(sp.PoolConfig)}
    assert {name: fields.get(name, "missing") for name in POOL} == POOL
    assert {"adapter", "size", "start_method", "python", "env", "cwd"} <= fields.keys()
    config = sp.PoolConfig(adapter="m")
    assert config.size >= 1
    assert (config.python, config.env, config.cwd) == (None, None, None)
    assert set(QUOTAS) <= {field.name for field in attrs.fields(sp.RuntimeConfig)}
    assert {"address", "token", "tls"} <= {field.name for field in attrs.fields(sp.BridgeConfig)}


def test_records() -> None:
    for kind, names in {
        sp.PoolStats: "size ready busy queued in_flight accepted rejected completed failed cancelled timed_out restarts"
        " late_replies cancel_set_size",
        sp.WorkerInfo: "id slot incarnation pool pid address state started_at requests in_flight rss last_heartbeat tainted",
        sp.Event: "name measurements metadata time",
    }.items():
        assert set(names.split()) <= {field.name for field in attrs.fields(kind)}, kind


@pytest.mark.parametrize(
    "kind",
    [
        sp.PoolStats, sp.WorkerInfo, SessionInfo, ProgramInfo, Limits, HostTool, RunEntry, Exit, Load, WorkerSpec, Hardware,
        Cpu, Memory, Accelerator,
    ],
)  # fmt: skip
def test_records_are_made_by_name(kind: Any) -> None:
    # So that a field may be put before another one.
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        kind("x")


def test_what_stands_on_objects() -> None:
    for kind, names in {
        sp.Pool: "runtime name",
        sp.Session: "id",
        sp.ToolContext: "request_id session_id worker_id attempt metadata deadline cancelled",
        sp.Runtime: "tools sessions programs bridge events",
        ToolRegistry: "host_tool",
    }.items():
        written = inspect.getsource(kind)
        for name in names.split():
            assert hasattr(kind, name) or f"self.{name}" in written, f"{kind.__name__}.{name}"


def test_errors_carry_their_context() -> None:
    error = sp.SnakepitError("text", code="c", details={"a": 1}, retryable=True)
    assert (error.message, error.code, error.details, error.retryable) == ("text", "c", {"a": 1}, True)
    kinds = [kind for name in sp.__all__ if inspect.isclass(kind := getattr(sp, name)) and issubclass(kind, Exception)]
    assert len(kinds) >= 25
    assert all(issubclass(kind, sp.SnakepitError) for kind in kinds)


def test_commands() -> None:
    assert set(COMMANDS) <= set(get_command(build()).commands)  # type: ignore[attr-defined]


#: Async methods that are for other rooms of the library, and in no reference.
INTERNAL = {
    "Pool": {"aclose", "open"},
    "Session": {"call"},
    "SessionDirectory": {"end", "info", "keep", "leave", "open", "sweep", "tell_of", "use"},
}


@pytest.mark.parametrize(
    "kind",
    [
        sp.Pool,
        sp.Session,
        sp.Runtime,
        sp.ToolContext,
        sp.Client,
        RemoteSession,
        ProgramStore,
        SessionDirectory,
        ToolRegistry,
    ],
    ids=lambda kind: kind.__name__,
)
def test_each_async_method_says_what_a_cancellation_leaves(kind: type) -> None:
    silent = []
    for name, member in inspect.getmembers(kind, callable):
        function = inspect.unwrap(member)
        if name.startswith("_") or name in INTERNAL.get(kind.__name__, ()):
            continue
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            silent += [name] * ("cancel" not in (member.__doc__ or "").lower())
    assert not silent
