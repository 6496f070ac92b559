"""A structured-concurrency runtime over a pool of worker processes that speak gRPC, for Trio and anyio.

Names are imported on first use (PEP 562), so a worker imports only the adapter's side and never the host's.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snakepit_trio import hardware as hardware
    from snakepit_trio import launchers as launchers
    from snakepit_trio._call_options import ToolCaller as ToolCaller
    from snakepit_trio.client.client import Client as Client
    from snakepit_trio.client.connecting import connect as connect
    from snakepit_trio.config import BridgeConfig as BridgeConfig
    from snakepit_trio.config import CircuitConfig as CircuitConfig
    from snakepit_trio.config import HedgeConfig as HedgeConfig
    from snakepit_trio.config import LimitConfig as LimitConfig
    from snakepit_trio.config import MetricsConfig as MetricsConfig
    from snakepit_trio.config import PoolConfig as PoolConfig
    from snakepit_trio.config import RayConfig as RayConfig
    from snakepit_trio.config import RetryConfig as RetryConfig
    from snakepit_trio.config import RuntimeConfig as RuntimeConfig
    from snakepit_trio.config import TlsConfig as TlsConfig
    from snakepit_trio.errors import AuthenticationFailed as AuthenticationFailed
    from snakepit_trio.errors import CircuitOpen as CircuitOpen
    from snakepit_trio.errors import ConfigError as ConfigError
    from snakepit_trio.errors import ConnectionLost as ConnectionLost
    from snakepit_trio.errors import IncompatibleDependency as IncompatibleDependency
    from snakepit_trio.errors import InvalidParameter as InvalidParameter
    from snakepit_trio.errors import InvalidPayload as InvalidPayload
    from snakepit_trio.errors import PoolClosed as PoolClosed
    from snakepit_trio.errors import PoolNotFound as PoolNotFound
    from snakepit_trio.errors import ProtocolMismatch as ProtocolMismatch
    from snakepit_trio.errors import QueueFull as QueueFull
    from snakepit_trio.errors import QueueTimeout as QueueTimeout
    from snakepit_trio.errors import QuotaExceeded as QuotaExceeded
    from snakepit_trio.errors import RequestCancelled as RequestCancelled
    from snakepit_trio.errors import RequestTimeout as RequestTimeout
    from snakepit_trio.errors import SessionNotFound as SessionNotFound
    from snakepit_trio.errors import SessionWorkerUnavailable as SessionWorkerUnavailable
    from snakepit_trio.errors import SnakepitError as SnakepitError
    from snakepit_trio.errors import StreamingUnsupported as StreamingUnsupported
    from snakepit_trio.errors import ToolError as ToolError
    from snakepit_trio.errors import ToolExists as ToolExists
    from snakepit_trio.errors import ToolNotFound as ToolNotFound
    from snakepit_trio.errors import WorkerBusy as WorkerBusy
    from snakepit_trio.errors import WorkerCrashed as WorkerCrashed
    from snakepit_trio.errors import WorkerStartupError as WorkerStartupError
    from snakepit_trio.errors import WouldDeadlock as WouldDeadlock
    from snakepit_trio.errors import WrongContext as WrongContext
    from snakepit_trio.errors import remote as remote
    from snakepit_trio.observe.correlation import CorrelationFilter as CorrelationFilter
    from snakepit_trio.observe.events import Event as Event
    from snakepit_trio.pool.calls.session import Session as Session
    from snakepit_trio.pool.pool import Pool as Pool
    from snakepit_trio.pool.stats import PoolStats as PoolStats
    from snakepit_trio.pool.stats import WorkerInfo as WorkerInfo
    from snakepit_trio.runtime import Runtime as Runtime
    from snakepit_trio.runtime import open_pool as open_pool
    from snakepit_trio.runtime import open_runtime as open_runtime
    from snakepit_trio.script import run as run
    from snakepit_trio.sessions.records import ProgramInfo as ProgramInfo
    from snakepit_trio.sessions.records import SessionInfo as SessionInfo
    from snakepit_trio.worker.adapter import Adapter as Adapter
    from snakepit_trio.worker.adapter import tool as tool
    from snakepit_trio.worker.context import ToolContext as ToolContext

__version__ = "0.1.0"

_MODULES = {
    "_call_options": ["ToolCaller"],
    "client.client": ["Client"],
    "client.connecting": ["connect"],
    "config": [
        "BridgeConfig", "CircuitConfig", "HedgeConfig", "LimitConfig", "MetricsConfig", "PoolConfig", "RayConfig",
        "RetryConfig", "RuntimeConfig", "TlsConfig",
    ],
    "errors": [
        "AuthenticationFailed", "CircuitOpen", "ConfigError", "ConnectionLost", "IncompatibleDependency",
        "InvalidParameter", "InvalidPayload", "PoolClosed", "PoolNotFound", "ProtocolMismatch", "QueueFull",
        "QueueTimeout", "QuotaExceeded", "RequestCancelled",
        "RequestTimeout", "SessionNotFound", "SessionWorkerUnavailable", "SnakepitError", "StreamingUnsupported",
        "ToolError", "ToolExists", "ToolNotFound", "WorkerBusy", "WorkerCrashed", "WorkerStartupError", "WouldDeadlock",
        "WrongContext", "remote",
    ],
    "observe.correlation": ["CorrelationFilter"],
    "observe.events": ["Event"],
    "pool.pool": ["Pool"],
    "pool.calls.session": ["Session"],
    "pool.stats": ["PoolStats", "WorkerInfo"],
    "sessions.records": ["ProgramInfo", "SessionInfo"],
    "runtime": ["Runtime", "open_pool", "open_runtime"],
    "script": ["run"],
    "worker.adapter": ["Adapter", "tool"],
    "worker.context": ["ToolContext"],
}  # fmt: skip
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = frozenset({"hardware", "launchers"})

__all__ = sorted({*_WHERE, *_SUBMODULES})  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
