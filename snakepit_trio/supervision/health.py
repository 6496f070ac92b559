"""The health check of one worker: ``grpc.health.v1.Health/Check``, which its server answers beside its calls."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from snakepit_trio.wire.connection import Connection, RpcFailure

from .answers import DEADLINE_EXCEEDED

__all__ = ["HEALTH", "unhealthy"]

HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"


async def unhealthy(connection: Connection, interval: float, excused: Callable[[float], bool]) -> str:
    """Check every ``interval`` seconds, with the same time limit, and return a description of the fault when the worker is
    unhealthy.

    Args:
        excused: Whether a worker that was asked at that time, on the event loop's clock, may leave the check unanswered
            until now.
    """
    while True:
        await anyio.sleep(interval)
        asked = anyio.current_time()
        try:
            with anyio.fail_after(interval):
                answer = await connection.unary(HEALTH, b"", timeout=interval)
        except TimeoutError:
            if excused(asked):
                continue
            return "did not answer a health check"
        except RpcFailure as exc:
            if exc.status == DEADLINE_EXCEEDED and excused(asked):
                continue
            return f"failed a health check: {exc.message}"
        if answer != _SERVING:
            return "says that it is not healthy"
