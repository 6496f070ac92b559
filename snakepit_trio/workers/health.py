"""The health check of one worker: ``grpc.health.v1.Health/Check``, which its server answers beside its calls."""

from __future__ import annotations

import anyio

from snakepit_trio.wire.connection import Connection, RpcFailure

__all__ = ["HEALTH", "unhealthy"]

HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"


async def unhealthy(connection: Connection, interval: float) -> str:
    """Ask every ``interval`` seconds, and wait so long for the answer; returns what was wrong, in words, when it is not well."""
    while True:
        await anyio.sleep(interval)
        try:
            with anyio.fail_after(interval):
                answer = await connection.unary(HEALTH, b"", timeout=interval)
        except TimeoutError:
            return "did not answer a health check"
        except RpcFailure as exc:
            return f"failed a health check: {exc.message}"
        if answer != _SERVING:
            return "says that it is not healthy"
