"""Configuration: frozen values, checked when they are created.

Times are in seconds, sizes in bytes; None means no limit. An invalid value raises
:class:`~snakepit_trio.errors.ConfigError`, which names the key, the value and what was expected.
"""

from __future__ import annotations

from snakepit_trio.policies.options import CircuitConfig, HedgeConfig, LimitConfig, RetryConfig

from .endpoints import BridgeConfig, MetricsConfig, TlsConfig
from .pool import PoolConfig
from .ray import RayConfig
from .runtime import RuntimeConfig

__all__ = [
    "BridgeConfig",
    "CircuitConfig",
    "HedgeConfig",
    "LimitConfig",
    "MetricsConfig",
    "PoolConfig",
    "RayConfig",
    "RetryConfig",
    "RuntimeConfig",
    "TlsConfig",
]
