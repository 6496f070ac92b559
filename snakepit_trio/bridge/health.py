"""grpc.health.v1: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

The service ``""`` is the whole host; ``snakepit.v1.BridgeService`` is the same. Each pool is a service under its own
name: it serves while it has a worker that accepts calls, until it begins to close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from snakepit_trio.errors import PoolNotFound
from snakepit_trio.wire.generated.grpc.health.v1 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
)

from .methods import Method
from .server_call import ServerCall

if TYPE_CHECKING:
    from snakepit_trio.pool.pool import Pool
    from snakepit_trio.runtime import Runtime

__all__ = ["HealthService"]

_SERVING = HealthCheckResponseServingStatus.SERVING
_NOT_SERVING = HealthCheckResponseServingStatus.NOT_SERVING
_UNKNOWN = HealthCheckResponseServingStatus.SERVICE_UNKNOWN
_WHOLE = ("", "snakepit.v1.BridgeService", "grpc.health.v1.Health")
#: The longest name of a service.
_LONGEST = 1024


class HealthService:
    """Answers by the state of the pools.

    Args:
        runtime: The runtime.
        public: Whether no token is required.
    """

    def __init__(self, runtime: Runtime, *, public: bool) -> None:
        self._runtime = runtime
        self._closing = False
        prefix = b"/grpc.health.v1.Health/"
        self.methods: dict[bytes, Method] = {
            prefix + b"Check": Method(self._check, HealthCheckRequest, public=public, longest=_LONGEST),
            prefix + b"Watch": Method(
                self._watch, HealthCheckRequest, streams_out=True, public=public, longest=_LONGEST
            ),
        }

    def close(self) -> None:
        """Stop serving, because the host is closing. Watchers are informed by the event ``bridge.closing``."""
        self._closing = True

    def _status(self, service: str) -> HealthCheckResponseServingStatus:
        pools = self._runtime.pools
        if service in _WHOLE:
            well = any(map(_serves, pools.values()))
        elif service in pools:
            well = _serves(pools[service])
        else:
            return _UNKNOWN
        return _SERVING if well and not self._closing else _NOT_SERVING

    async def _check(self, call: ServerCall, request: HealthCheckRequest) -> HealthCheckResponse:
        found = self._status(request.service)
        if found is _UNKNOWN:
            raise PoolNotFound(f"there is no service {request.service!r}", details={"service": request.service})
        return HealthCheckResponse(status=found)

    async def _watch(self, call: ServerCall, request: HealthCheckRequest) -> None:
        told = None
        async with self._runtime.events.subscribe("worker.", "pool.", "bridge.closing", capacity=1) as events:
            while not self._closing:
                told = await self._tell(call, request.service, told)
                await anext(events)
            await self._tell(call, request.service, told)

    async def _tell(
        self, call: ServerCall, service: str, told: HealthCheckResponseServingStatus | None
    ) -> HealthCheckResponseServingStatus:
        found = self._status(service)
        if found is not told:
            await call.send(HealthCheckResponse(status=found))
        return found


def _serves(pool: Pool) -> bool:
    return not pool.closed and pool.stats().ready > 0
