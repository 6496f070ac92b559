"""``socket.setdefaulttimeout``, in the host or in an adapter, is for the application's own sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

import snakepit_trio as sp
from snakepit_trio.control.client import connect
from snakepit_trio.supervision.runs import list_runs

pytestmark = pytest.mark.anyio


@pytest.fixture
def default_timeout(request: pytest.FixtureRequest) -> Iterator[None]:
    socket.setdefaulttimeout(request.param)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("default_timeout")
@pytest.mark.parametrize(("default_timeout", "transport"), [(0.01, "unix"), (0.0, "tcp")], indirect=["default_timeout"])
async def test_it_does_not_reach_what_the_library_opens(transport: str, tmp_path: Path) -> None:
    config = sp.RuntimeConfig(
        pools=[
            sp.PoolConfig(name="forked", adapter="tests.adapters.impatient", size=1, transport=transport),
            sp.PoolConfig(
                name="spawned", adapter="tests.adapters.basic", size=1, start_method="spawn", transport=transport
            ),
        ],
        state_dir=str(tmp_path / "state"),
        bridge=sp.BridgeConfig(address="tcp:127.0.0.1:0" if transport == "tcp" else None),
        metrics=sp.MetricsConfig(address="tcp:127.0.0.1:0"),
    )
    async with sp.open_runtime(config) as runtime:
        runtime.tools.register("answer", lambda: 42)
        [run] = list_runs(tmp_path / "state")
        assert runtime.bridge is not None
        assert runtime.metrics is not None
        assert runtime.metrics.address is not None
        port = int(runtime.metrics.address.rpartition(":")[2])
        async with (
            sp.connect(runtime.bridge.address, token=runtime.bridge.token, pool="forked") as client,
            connect(run.control) as control,
            await anyio.connect_tcp("127.0.0.1", port) as scraper,
        ):
            [template] = [c for c in psutil.Process().children() if "snakepit_trio.launch.template" in c.cmdline()]
            value = b"x" * 3_000_000
            for asked in (runtime.pool("forked"), client):
                assert await asked.execute("echo", {"value": value, "seconds": 0.05}) == value
                assert await asked.execute("ask") == 42
                assert await asked.execute("default_timeout") == 0.01, "the adapter's own sockets have it"
            assert await runtime.pool("spawned").execute("sleep", {"seconds": 0.05}) == "slept"
            assert (await control.ask("status"))["run_id"] == runtime.run_id
            await scraper.send(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await scraper.receive()).startswith(b"HTTP/1.1 200")
            # The template is still there, and tells how the last worker has ended.
            with pytest.raises(sp.WorkerCrashed) as caught:
                await runtime.pool("forked").execute("crash")
            assert caught.value.details["reason"] == "segfault"
            assert await runtime.pool("forked").execute("ask") == 42
            assert template.is_running()
