"""A host with everything that shows something to somebody, and a secret that goes in by every way; prints what was shown.

``python -m tests.integration.canary_app STATE_DIR FORMS``, the forms as a JSON object; run by test_canary.py, in a process of its
own because OpenTelemetry is set up for a whole process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import snakepit_trio as sp

exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
ADAPTER = "tests.adapters.leaky"


async def shown_error(call: Any) -> str:
    try:
        await call
    except sp.SnakepitError as exc:
        return f"{exc!r} {exc.__dict__!r}"
    raise AssertionError("it did not fail")


async def poured(source: Any, text: str) -> None:
    async with source.stream("pour", {"text": text}) as chunks:
        async for _ in chunks:
            pass


async def command(*arguments: str) -> str:
    done = await anyio.run_process([sys.executable, "-m", "snakepit_trio", *arguments], check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return (done.stdout + done.stderr).decode()


async def mcp(form: str, text: str) -> str:
    """What an agent is told by a server of its own."""
    from mcp import Client, StdioServerParameters

    environment = {**os.environ, "CANARY_PASSWORD": text}
    arguments = ["-m", "snakepit_trio", "mcp", ADAPTER, "--size", "1"]
    async with Client(StdioServerParameters(command=sys.executable, args=arguments, env=environment)) as client:
        answers = [await client.call_tool(tool, {"text": text}) for tool in ("blow", "pour")]
        answers.append(await client.call_tool("typed", {"password": text}))
        assert all(answer.is_error for answer in answers)
        return repr([answer.model_dump() for answer in answers]) + repr((await client.list_tools()).model_dump())


def plain_status(address: str, token: str, text: str) -> str:
    """The status of an RPC that fails, as a stock client reads it: its message, and all of its details decoded."""
    import grpc
    from grpc_status import rpc_status

    from snakepit_trio.wire.generated.snakepit import v1

    payload = v1.Payload(encoding=v1.Encoding.JSON, data=json.dumps({"text": text}).encode())
    with grpc.insecure_channel(address.removeprefix("tcp:")) as channel:
        execute = channel.unary_unary("/snakepit.v1.BridgeService/ExecuteTool")
        try:
            request = v1.ExecuteToolRequest(tool="blow", payload=payload)
            execute(bytes(request), metadata=[("authorization", f"Bearer {token}")], timeout=30)
        except grpc.RpcError as exc:
            status = rpc_status.from_call(exc)
            assert len(status.details) >= 2
            return f"{exc.details()} {[detail.value for detail in status.details]!r}"
    raise AssertionError("it did not fail")


async def main(state_dir: str, forms: dict[str, str], places: dict[str, str]) -> None:
    config = sp.RuntimeConfig(
        pools=[
            sp.PoolConfig(adapter=ADAPTER, size=1, prefetch=0, queue_timeout=None, env={"CANARY_PASSWORD": "see below"})
        ],
        state_dir=state_dir,
        redact_patterns=[r"acct#[^#]*#"],
        bridge=sp.BridgeConfig(address="tcp:127.0.0.1:0"),
        metrics=sp.MetricsConfig(address="tcp:127.0.0.1:0"),
    )
    done = Path(state_dir) / "done"
    async with sp.open_runtime(config) as runtime, anyio.create_task_group() as nursery:
        pool, door = runtime.pool(), runtime.bridge
        assert door is not None
        assert runtime.metrics is not None
        runtime.tools.register("blow", blow)
        async with sp.connect(door.address, token=door.token) as client, runtime.events.subscribe() as events:
            for form, text in forms.items():
                metadata = {"note": text}
                places[f"{form}: what a client is told"] = "\n".join(
                    [
                        await shown_error(client.execute("blow", {"text": text}, metadata=metadata)),
                        await shown_error(client.execute("ask", {"text": text}, metadata=metadata)),
                        await shown_error(client.execute("typed", {"password": text})),
                        await shown_error(poured(client, text)),
                    ]
                )
                await shown_error(pool.execute("blow", {"text": text}, metadata=metadata))
                await shown_error(poured(pool, text))
                if importlib.util.find_spec("grpc_status") is not None:
                    told = await anyio.to_thread.run_sync(plain_status, door.address, door.token, text)
                    places[f"{form}: what a stock client is told"] = told
            # A request that runs and one that waits, of a session whose id is not to be seen either.
            async with pool.session("password=" + forms["assignment"].partition("=")[2]) as session:
                for text in (forms["bearer"], forms["pattern"]):
                    arguments = {"text": text, "until": str(done)}
                    nursery.start_soon(lambda a=arguments: session.execute("linger", a, metadata={"note": a["text"]}))
                while pool.stats().queued != 1:
                    await anyio.sleep(0.002)
                options = ("--state-dir", state_dir)
                places["status --json"] = await command("status", "--json", *options)
                places["status --tree"] = await command("status", "--tree", *options)
                places["diagnose --flight"] = await command("diagnose", "--flight", "--json", *options)
                assert '"linger"' in places["status --json"]
                assert "linger" in places["status --tree"]
                done.touch()
                while pool.stats().in_flight or pool.stats().queued:
                    await anyio.sleep(0.002)
            url = f"http://{runtime.metrics.address.removeprefix('tcp:')}/metrics"
            places["metrics"] = await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(url).read().decode())
            assert "snakepit" in places["metrics"]
            places["events"] = "\n".join(repr(event) for event in iter(events.receive_nowait, None))
            assert "session.opened" in places["events"]
    spans = exporter.get_finished_spans()
    assert {"blow", "pour", "linger"} <= {span.name for span in spans}
    places["spans"] = "\n".join(span.to_json(indent=None) for span in spans)
    data = reader.get_metrics_data()
    places["OpenTelemetry's metrics"] = "" if data is None else data.to_json()


def blow(text: str) -> None:
    raise RuntimeError(f"the host had {text}")


if __name__ == "__main__":
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    found: dict[str, str] = {}
    anyio.run(main, sys.argv[1], json.loads(sys.argv[2]), found, backend="trio")
    if importlib.util.find_spec("mcp") is not None:
        for name, secret in json.loads(sys.argv[2]).items():
            if name == "assignment":
                found["what an agent is told"] = anyio.run(mcp, name, secret, backend="asyncio")
    print(json.dumps(found))
