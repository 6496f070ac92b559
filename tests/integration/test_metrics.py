"""Metrics of a real runtime, over HTTP, by prometheus_client's own parsers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

import snakepit_trio as sp
from snakepit_trio._unix_door import UnixDoor

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"


def config(metrics: sp.MetricsConfig, **options: Any) -> sp.RuntimeConfig:
    pools = [
        sp.PoolConfig(adapter=BASIC, size=1, max_queue=0, **options),
        sp.PoolConfig(name="b", adapter=BASIC, size=1),
    ]
    return sp.RuntimeConfig(pools=pools, metrics=metrics)


async def connect(address: str) -> anyio.abc.SocketStream:
    if address.startswith("unix:"):
        return await anyio.connect_unix(address.removeprefix("unix:"))
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return await anyio.connect_tcp(host, int(port))


async def ask(address: str, request: str) -> tuple[int, dict[str, str], str]:
    """Send a request and read to the end."""
    data = b""
    async with await connect(address) as stream:
        await stream.send(request.encode())
        try:
            while True:
                data += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            pass
    head, _, body = data.decode().partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]) if status else 0, headers, body


async def get(address: str, path: str, *headers: str) -> tuple[int, dict[str, str], str]:
    lines = "".join(f"{header}\r\n" for header in ("Host: x", *headers))
    return await ask(address, f"GET {path} HTTP/1.1\r\n{lines}\r\n")


async def test_what_a_scraper_reads() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(sp.MetricsConfig(max_tools=2))) as runtime:
            pool = runtime.pool()
            assert runtime.metrics is not None
            address = runtime.metrics.address
            assert address is not None
            assert address.startswith("tcp:127.0.0.1:")
            for _ in range(3):
                await pool.execute("add", {"a": 1, "b": 2})
            with pytest.raises(sp.ToolError):
                await pool.execute("fail", {"message": "no"})
            with pytest.raises(sp.RequestTimeout):
                await pool.execute("echo", {"value": 1}, timeout=1e-9)
            async with pool.stream("count", {"n": 2}) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1]
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "sleep", {"seconds": 0.1})
                await anyio.lowlevel.checkpoint()
                while not pool.stats().in_flight:
                    await anyio.lowlevel.checkpoint()
                with pytest.raises(sp.QueueFull):
                    await pool.execute("add", {"a": 1, "b": 2})
            status, headers, body = await get(address, "/metrics")
            assert status == 200
            assert headers["content-type"].startswith("text/plain")
            families = {family.name: family for family in parse(body)}
            samples = {
                (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
                for family in families.values()
                for sample in family.samples
            }
            assert all(name.startswith("snakepit") for name in families)
            stats = pool.stats()
            assert samples["snakepit_requests_accepted_total", "default"] == stats.accepted
            assert samples["snakepit_requests_total", "completed", "default"] == stats.completed == 5
            assert samples["snakepit_requests_total", "failed", "default"] == 1
            assert samples["snakepit_requests_total", "rejected", "default"] == stats.rejected == 2
            assert samples["snakepit_pool_size", "b"] == 1
            assert samples["snakepit_workers", "default", "ready"] == 1
            assert samples["snakepit_queue_wait_seconds_count", "default"] == 6
            tools = {s.labels["tool"] for s in families["snakepit_request_duration_seconds"].samples}
            assert tools == {"add", "fail", "other"}
            durations = families["snakepit_request_duration_seconds"].samples
            added = [s.value for s in durations if s.name.endswith("_bucket") and s.labels["tool"] == "add"]
            assert added == sorted(added)
            assert added[-1] == 3

            accept = "Accept: application/openmetrics-text; version=1.0.0"
            _, headers, body = await get(address, "/metrics", accept)
            assert headers["content-type"].startswith("application/openmetrics-text")
            assert {family.name for family in parse_openmetrics(body)} >= {"snakepit_requests", "snakepit_workers"}

            assert (await get(address, "/live"))[0] == 200
            status, _, body = await get(address, "/ready")
            assert status == 200
            assert json.loads(body)["pools"]["default"] == {"ready": 1, "size": 1}
        with pytest.raises(OSError):
            await connect(address)


async def test_what_is_not_served() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(sp.MetricsConfig(client_timeout=1.0, max_connections=3))) as runtime:
            assert runtime.metrics is not None
            address = runtime.metrics.address
            assert address is not None
            assert (await get(address, "/else"))[0] == 404
            status, headers, _ = await ask(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert (status, headers["allow"]) == (405, "GET, HEAD")
            status, headers, body = await ask(address, "HEAD /live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, headers["content-length"], body) == (200, "5", "")
            assert (await ask(address, "nonsense\r\n\r\n"))[0] == 400
            assert (await ask(address, "GET /live HTTP/1.1\r\n\r\n"))[0] == 400, "no Host"
            status, _, _ = await get(address, "/live", *(f"X-{n}: {'x' * 100}" for n in range(200)))
            assert status in (0, 431), "a head that is too long is not read to its end"
            # Clients that say nothing hold their places for a bounded time, and keep no other out.
            silent = [await connect(address) for _ in range(3)]
            assert (await get(address, "/live"))[0] == 200
            for stream in silent:
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
                await stream.aclose()
            assert (await get(address, "/live"))[0] == 200
            assert "clients=0" in repr(runtime.metrics) or "clients=1" in repr(runtime.metrics)


async def test_not_ready_while_a_pool_has_no_worker(tmp_path: Path) -> None:
    pools = [
        sp.PoolConfig(adapter=BASIC, size=1),
        sp.PoolConfig(name="broken", adapter="tests.adapters.broken_setup", size=1),
    ]
    address = f"unix:{tmp_path / 'm.sock'}"
    with anyio.fail_after(60):
        async with sp.open_runtime(sp.RuntimeConfig(pools=pools, metrics=sp.MetricsConfig(address=address))) as runtime:
            assert runtime.metrics is not None
            assert runtime.metrics.address == address
            status, _, body = await get(address, "/ready")
            assert status == 503
            assert json.loads(body)["pools"]["broken"]["ready"] == 0
            assert (tmp_path / "m.sock").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "m.sock").exists()


def listening(address: str) -> socket.socket:
    """Another descriptor of this process's own socket that listens there."""
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
            if sock.getsockname() == (host, int(port)) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return sock
            sock.close()
    raise LookupError(address)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_a_listener_that_fails_is_bound_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.sock"
    with anyio.fail_after(60):
        given = f"unix:{path}" if kind == "unix" else "tcp:127.0.0.1:0"
        async with sp.open_runtime(config(sp.MetricsConfig(address=given))) as runtime:
            assert runtime.metrics is not None
            address = runtime.metrics.address
            assert address is not None
            if kind == "tcp":
                with listening(address) as sock:
                    # From here on nobody can be accepted by it.
                    sock.shutdown(socket.SHUT_RDWR)
            else:
                wait = UnixDoor.wait

                async def fail(door: UnixDoor) -> None:
                    if door._path != str(path):
                        return await wait(door)
                    monkeypatch.setattr(UnixDoor, "wait", wait)
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

                monkeypatch.setattr(UnixDoor, "wait", fail)
                assert (await get(address, "/live"))[0] in (0, 200), "the one after which it fails"
                while "metrics can't be served" not in caplog.text:
                    await anyio.sleep(0.02)
            assert await until_live(address)
            assert runtime.metrics.address == address
    assert "metrics can't be served for a moment: " in caplog.text
    assert not path.exists()


async def test_a_unix_socket_that_was_removed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakepit_trio._unix_door._LOOK", 0.02)
    path = tmp_path / "m.sock"
    with anyio.fail_after(60):
        async with sp.open_runtime(config(sp.MetricsConfig(address=f"unix:{path}"))):
            path.unlink()
            assert await until_live(f"unix:{path}")
            assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def until_live(address: str) -> bool:
    while True:
        with contextlib.suppress(OSError):
            if (await get(address, "/live"))[0] == 200:
                return True
        await anyio.sleep(0.02)


async def test_a_registry_of_the_applications_own() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(sp.MetricsConfig(address=None))) as runtime:
            assert runtime.metrics is not None
            assert runtime.metrics.address is None
            registry = CollectorRegistry()
            registry.register(runtime.metrics.collector)
            await runtime.pool().execute("add", {"a": 1, "b": 2})
            assert b'snakepit_requests_total{outcome="completed",pool="default"} 1.0' in generate_latest(registry)


async def test_an_address_that_is_taken() -> None:
    with anyio.fail_after(60):
        async with sp.open_runtime(config(sp.MetricsConfig())) as runtime:
            assert runtime.metrics is not None
            with pytest.raises(sp.ConfigError, match=r"metrics\.address") as caught:
                async with sp.open_runtime(config(sp.MetricsConfig(address=runtime.metrics.address))):
                    pass
            assert caught.value.details["key"] == "metrics.address"
