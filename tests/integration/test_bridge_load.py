"""Much at once: what the bridge has open and keeps in memory does not grow with what has gone through it."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest
from grpclib.const import Status

import snakepit_trio as sp
from snakepit_trio.wire.generated.snakepit import v1
from tests.clients.raw import Raw

from .test_bridge_abuse import at, door, plain, still_serves

pytestmark = pytest.mark.anyio

LOAD = Path(__file__).resolve().parents[1] / "clients" / "load.py"
#: `nox -s soak` asks for more.
ROUNDS = int(os.environ.get("SNAKEPIT_BRIDGE_ROUNDS", "1"))
CONNECTIONS, EACH = 500, 10


async def test_500_connections_and_10_000_requests(tmp_path: Path) -> None:
    message = plain("sync_add", b'{"a":1,"b":2}').hex()

    async def load(runtime: sp.Runtime) -> tuple[int, int]:
        """Descriptors and memory after 500 connections with ten requests each."""
        program = [sys.executable, str(LOAD), f"{tmp_path}/door", "right", str(CONNECTIONS), str(EACH), message]
        done = await anyio.run_process(program, stderr=None)
        assert int(done.stdout) == CONNECTIONS * EACH
        assert runtime.bridge is not None
        with anyio.fail_after(30):
            while runtime.bridge.connections:
                await anyio.sleep(0.005)
        gc.collect()
        process = psutil.Process()
        return process.num_fds(), process.memory_info().rss

    async with door(tmp_path) as runtime:
        # As large as those after it: the allocator keeps what the most that was under way at once has taken.
        fds, memory = await load(runtime)
        for _ in range(ROUNDS):
            fds_after, memory_after = await load(runtime)
            assert fds_after <= fds + 2
            assert memory_after < memory + 8 * 1024 * 1024
        assert runtime.pool().stats().in_flight == 0
        await still_serves(tmp_path)


async def test_what_waits_to_be_decoded_is_bounded_over_all_connections(tmp_path: Path) -> None:
    limit = 1024 * 1024
    half = b"\0" + (500_000).to_bytes(4, "big") + b"x" * 300_000

    def begin(raw: Raw) -> int:
        stream = raw.headers()
        for start in range(0, len(half), 16_000):
            while raw.h2.local_flow_control_window(stream) < 16_000:
                assert raw.read()
            raw.h2.send_data(stream, half[start : start + 16_000])
            raw.flush()
        return stream

    async with door(tmp_path, max_buffered=limit, max_message=600_000) as runtime:
        assert runtime.bridge is not None
        budget = runtime.bridge._budget
        with Raw(at(tmp_path)) as greedy, Raw(at(tmp_path)) as second:
            # One connection may have what one message may have, and no more: the rest is for others.
            await anyio.to_thread.run_sync(begin, greedy)
            refused = await anyio.to_thread.run_sync(begin, greedy)
            trailers = await anyio.to_thread.run_sync(greedy.trailers, refused)
            assert trailers["grpc-status"] == "8"
            await anyio.to_thread.run_sync(begin, second)
            with anyio.fail_after(30):
                while budget.used < 600_000:
                    await anyio.sleep(0.005)
            with Raw(at(tmp_path)) as late:
                stream = await anyio.to_thread.run_sync(begin, late)
                assert (await anyio.to_thread.run_sync(late.trailers, stream))["grpc-status"] == "8"
            assert budget.used <= limit
            # What is small goes through.
            await still_serves(tmp_path)
        with anyio.fail_after(30):
            while budget.used:
                await anyio.sleep(0.005)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_much_in_both_directions_at_once(tmp_path: Path, secure: bool) -> None:
    """Neither end stops reading because the other has not yet read what it has sent."""
    options: dict[str, Any] = {"address": f"unix:{tmp_path}/door"}
    if secure:
        trustme = pytest.importorskip("trustme")
        authority = trustme.CA()
        made = authority.issue_cert("127.0.0.1")
        made.private_key_pem.write_to_path(tmp_path / "key")
        made.cert_chain_pems[0].write_to_path(tmp_path / "cert")
        authority.cert_pem.write_to_path(tmp_path / "authority")
        tls = sp.TlsConfig(cert=str(tmp_path / "cert"), key=str(tmp_path / "key"))
        options = {"address": "tcp:127.0.0.1:0", "tls": tls}
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter="tests.adapters.evil", size=1)], bridge=sp.BridgeConfig(token="right", **options)
    )
    async with sp.open_runtime(config) as runtime:
        assert runtime.bridge is not None
        trusted = str(tmp_path / "authority") if secure else None
        async with sp.connect(runtime.bridge.address, token="right", tls=trusted) as client:
            data = bytes(4 * 1024 * 1024)

            async def ask() -> None:
                assert await client.execute("echo", {"value": data}) == data

            with anyio.fail_after(60):
                async with anyio.create_task_group() as nursery:
                    for _ in range(6):
                        nursery.start_soon(ask)


async def test_a_client_that_is_stopped_is_noticed(tmp_path: Path) -> None:
    """Its socket is open and takes what we send: only that it does not answer tells."""
    code = (
        "import sys, anyio, snakepit_trio as sp\n"
        "async def main():\n"
        "    async with sp.connect(sys.argv[1], token='right') as client:\n"
        "        await client.execute('wait', {'marker': sys.argv[2]})\n"
        "anyio.run(main, backend='trio')\n"
    )
    marker = tmp_path / "m"
    pools = [sp.PoolConfig(adapter="tests.adapters.asynchronous", size=1)]
    bridge = sp.BridgeConfig(
        address="tcp:127.0.0.1:0", token="right", keepalive_interval=0.2, keepalive_timeout=1.0, public_health=True
    )
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=bridge)) as runtime:
        assert runtime.bridge is not None
        arguments = [sys.executable, "-c", code, runtime.bridge.address, str(marker)]
        async with await anyio.open_process(arguments, stderr=None) as process:
            try:
                with anyio.fail_after(30):
                    while not marker.exists():
                        await anyio.sleep(0.005)
                    # It answers: it stays.
                    await anyio.sleep(1.5)
                    assert runtime.bridge.connections == 1
                    process.send_signal(signal.SIGSTOP)
                    while runtime.bridge.connections or not (tmp_path / "m.cancelled").exists():
                        await anyio.sleep(0.005)
            finally:
                process.kill()
        assert runtime.pool().stats().cancelled == 1


@pytest.mark.parametrize("field", ["parameters_schema", "result_schema"])
@pytest.mark.parametrize("schema", ["{", "[]", "{}x"])
async def test_a_clients_tool_with_a_schema_that_is_none_is_refused(tmp_path: Path, field: str, schema: str) -> None:
    tools = [v1.ToolSpec(name="good", parameters_schema="{}"), v1.ToolSpec(name="bad", **{field: schema})]
    async with door(tmp_path) as runtime:
        with Raw(at(tmp_path)) as raw:
            request: Any = bytes(v1.RegisterToolsRequest(tools=tools))
            stream = raw.request(request, path="/snakepit.v1.BridgeService/RegisterTools")
            trailers = await anyio.to_thread.run_sync(raw.trailers, stream)
        assert trailers["grpc-status"] == str(Status.INVALID_ARGUMENT.value)
        assert f"tools[1].{field}: the schema of 'bad'" in trailers["grpc-message"]
        assert "good" not in runtime.tools


async def test_tools_that_nobody_serves_in_time_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakepit_trio.bridge.client_tools._TO_COME", 0.2)
    request: Any = bytes(v1.RegisterToolsRequest(tools=[v1.ToolSpec(name="never_served")]))
    async with door(tmp_path) as runtime:
        with Raw(at(tmp_path)) as raw:
            stream = raw.request(request, path="/snakepit.v1.BridgeService/RegisterTools")
            assert (await anyio.to_thread.run_sync(raw.trailers, stream))["grpc-status"] == "0"
            with anyio.fail_after(30):
                while "never_served" in runtime.tools:
                    await anyio.sleep(0.005)
