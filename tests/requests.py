"""Requests as the scheduler gets them, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from snakepit_trio._call_options import CallOptions
from snakepit_trio.pool.scheduling.request import Request
from snakepit_trio.wire.frames import MSGPACK, Payload

__all__ = ["NOTHING", "Stream", "make_request"]

NOTHING = Payload(MSGPACK, b"\xc0")


class Stream:
    """The caller's end of a stream that is read at once."""

    window = 4
    window_bytes = 1000

    def __init__(self) -> None:
        self.released: anyio.Event = anyio.Event()

    def put(self, chunk: Payload) -> None:
        """Nothing is kept."""


def make_request(
    number: int,
    tool: str = "t",
    *,
    on_end: Callable[[], object] = lambda: None,
    priority: int = 0,
    idempotent: bool | None = None,
    stream: bool = False,
    time_limit: float | None = None,
    **rest: Any,
) -> Request:
    """A request; ``rest`` are the arguments of :class:`Request`."""
    options = CallOptions(priority=priority, idempotent=idempotent)
    request = Request(number, tool, NOTHING, options, on_end=on_end, stream=Stream() if stream else None, **rest)
    request.time_limit = time_limit
    return request
