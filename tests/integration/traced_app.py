"""An application with OpenTelemetry; prints what it has seen as JSON. Run by test_tracing.py, in a process of its own."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import anyio
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import snakepit_trio as sp

exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
logs: list[str] = []


class Keep(logging.Handler):
    """Keeps what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        logs.append(self.format(record))


async def main() -> None:
    tracer = trace.get_tracer("app")
    async with sp.open_pool("tests.adapters.traced", size=1, max_queue=0) as pool:

        @pool.runtime.tools.host_tool
        async def again(n: int) -> int:
            logging.getLogger("app").warning("again %d", n)
            with tracer.start_as_current_span("in the host"):
                return n + 2

        with tracer.start_as_current_span("outer"):
            assert await pool.execute("work", {"n": 1}) == 2
        try:
            await pool.execute("fail", {"message": "password=hunter2"})
        except sp.ToolError:
            pass
        async with pool.stream("count", {"n": 3}) as chunks:
            assert [chunk async for chunk in chunks] == [0, 1, 2]
        async with pool.map("work", [{"n": 5}]) as results:
            assert [result async for result in results] == [6]
        assert await pool.execute("ask", {"n": 1}) == 3
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "hang")
            while not pool.stats().in_flight:
                await anyio.sleep(0.001)
            nursery.cancel_scope.cancel()
        measured = reader.get_metrics_data()
    after = reader.get_metrics_data()
    print(json.dumps({"spans": [shown(s) for s in exporter.get_finished_spans()], "metrics": points(measured),
                      "after": sorted(points(after)), "logs": logs}))  # fmt: skip


def shown(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": f"0x{span.context.trace_id:032x}",
        "id": f"0x{span.context.span_id:016x}",
        "parent": None if span.parent is None else f"0x{span.parent.span_id:016x}",
        "attributes": dict(span.attributes),
        "events": [[event.name, event.timestamp, dict(event.attributes)] for event in span.events],
        "start": span.start_time,
        "end": span.end_time,
        "status": span.status.status_code.name,
        "text": span.to_json(),
    }


def points(data: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = [
                    [
                        dict(point.attributes),
                        getattr(point, "count", None) or getattr(point, "value", None),
                        metric.unit,
                    ]
                    for point in metric.data.data_points
                ]
    return found


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    handler = Keep()
    handler.addFilter(sp.CorrelationFilter())
    handler.setFormatter(logging.Formatter("%(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    anyio.run(main, backend=sys.argv[1])
