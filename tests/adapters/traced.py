"""Sets OpenTelemetry up in the worker: spans go to a file, one JSON object a line. Its tools log, too."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import anyio
import anyio.lowlevel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

import snakepit_trio as sp

_log = logging.getLogger("traced")


def setup() -> None:
    out = open(os.environ["TRACE_FILE"], "a", buffering=1)  # noqa: SIM115
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


@sp.tool
async def work(n: int) -> int:
    with trace.get_tracer("traced").start_as_current_span("inside"):
        await anyio.lowlevel.checkpoint()
        _log.warning("working on %d", n)
    return n + 1


@sp.tool
def fail(message: str) -> None:
    raise ValueError(message)


@sp.tool
def count(n: int) -> Iterator[int]:
    yield from range(n)


@sp.tool
async def hang() -> None:
    await anyio.sleep_forever()


@sp.tool
async def ask(ctx: sp.ToolContext, n: int) -> int:
    found: int = await ctx.call_host("again", {"n": n})
    return found
