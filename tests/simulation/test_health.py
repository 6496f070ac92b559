"""What a worker's answers to health checks mean, on a clock that jumps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from snakepit_trio.supervision.answers import DEADLINE_EXCEEDED
from snakepit_trio.supervision.health import unhealthy
from snakepit_trio.wire.connection import RpcFailure

SERVING, OTHER = b"\x08\x01", b"\x08\x02"


class Connection:
    """Answers each check as it is told; then there is nothing more to learn."""

    def __init__(self, *answers: bytes | RpcFailure | None) -> None:
        self.answers = [*answers, OTHER]

    async def unary(self, path: str, request: bytes, *, timeout: float) -> bytes:
        found = self.answers.pop(0)
        if found is None:
            await anyio.sleep(timeout + 1)
        if isinstance(found, RpcFailure):
            raise found
        await anyio.lowlevel.checkpoint()
        assert found is not None
        return found


def said(*answers: bytes | RpcFailure | None, excused: Callable[[float], bool]) -> tuple[str, float]:
    async def main() -> tuple[str, float]:
        began = anyio.current_time()
        connection: Any = Connection(*answers)
        with anyio.fail_after(1000):
            return await unhealthy(connection, 2.0, lambda asked: excused(asked - began)), anyio.current_time() - began

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("late", [None, RpcFailure(DEADLINE_EXCEEDED, "late")])
def test_silence_is_excused_by_work(late: RpcFailure | None) -> None:
    asked: list[float] = []

    def once(at: float) -> bool:
        asked.append(at)
        return len(asked) == 1

    words, spent = said(SERVING, late, late, excused=once)
    assert words in ("did not answer a health check", "failed a health check: late")
    # A check that is not answered takes its time; asked again after the interval.
    assert asked == ([4.0, 8.0] if late is None else [4.0, 6.0]) and spent == (10.0 if late is None else 6.0)


def test_any_other_failure_is_not() -> None:
    words, spent = said(RpcFailure(12, "no such method"), excused=lambda asked: True)
    assert (words, spent) == ("failed a health check: no such method", 2.0)
    assert said(SERVING, SERVING, excused=lambda asked: True) == ("says that it is not healthy", 6.0)
