"""Workers in other network namespaces: packets that get lost, links that are cut, and what can be read on the way."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import sniffio

import snakepit_trio as sp
from snakepit_trio.wire.connection import RpcFailure
from snakepit_trio.wire.transports import make_wire
from tests.netns.far import far_launcher
from tests.netns.links import Far, Network, network

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif("SNAKEPIT_TEST_NETNS" not in os.environ, reason="makes network namespaces: nox -s netns"),
]

BASIC = "tests.adapters.basic"
#: The first two bytes of a record with data of TLS 1.2 and later.
RECORD = b"\x17\x03\x03"


@pytest.fixture
def net() -> Iterator[Network]:
    with network(2) as made:
        yield made


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Any]:
    with far_launcher(tmp_path) as module:
        yield module


def node(place: Far) -> list[str]:
    return [*place.command, sys.executable, "-m", "far_node", place.address]


def runtime_at(far: Any, command: list[str], **options: Any) -> Any:
    launcher = far.far_workers(command)
    given = {"adapter": BASIC, "size": 1, "startup_timeout": 60, "shm_limit": 0, "launcher": launcher, **options}
    return sp.open_runtime(sp.RuntimeConfig(pools=[sp.PoolConfig(**given)]))


async def test_calls_survive_lost_packets(net: Network, far: Any, tmp_path: Path) -> None:
    place = net.far[0]
    with anyio.fail_after(110):
        async with runtime_at(far, node(place), size=2, queue_timeout=None) as runtime:
            pool = runtime.pool("default")
            before = {worker.id for worker in pool.workers()}
            assert all(worker.address.startswith(f"tcp:{place.address}:") for worker in pool.workers())
            place.lose(5)

            async def calls(start: int) -> None:
                for number in range(start, start + 40):
                    assert await pool.execute("add", {"a": number, "b": 1}) == number + 1

            async with anyio.create_task_group() as nursery:
                for caller in range(8):
                    nursery.start_soon(calls, caller * 100)
            data = os.urandom(1 << 20)
            assert await pool.execute("echo", {"value": data}) == data
            async with pool.stream("count", {"n": 300}) as chunks:
                assert [chunk async for chunk in chunks] == list(range(300))
            marker = tmp_path / "marker"
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "wait_for_cancel", {"marker": str(marker)})
                while not marker.exists():
                    await anyio.sleep(0.005)
                nursery.cancel_scope.cancel()
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert place.lost() > 20
            # Nobody took the losses for a death.
            assert {worker.id for worker in pool.workers()} == before
            assert pool.stats().restarts == 0


@pytest.mark.parametrize("how", ["link", "packets"])
async def test_a_cut_link_is_noticed_by_heartbeats_and_the_worker_replaced(net: Network, far: Any, how: str) -> None:
    """Whether the interface goes down or all packets are lost on the way: nobody tells either end."""
    first, second = net.far
    interval, misses = 0.5, 3
    # Each start is somewhere else, as a scheduler that knows of the loss would do.
    places = iter((first, second, second))

    class Elsewhere(far.FarLauncher):  # type: ignore[misc,name-defined]
        async def start(self, spec: Any) -> Any:
            self._command = node(next(places))
            return await super().start(spec)

    far.FarLauncher = Elsewhere
    with anyio.fail_after(110):
        async with runtime_at(far, [], heartbeat_interval=interval, heartbeat_misses=misses) as runtime:
            pool = runtime.pool("default")
            (old,) = pool.workers()
            failures: list[sp.WorkerCrashed] = []

            async def call() -> None:
                with pytest.raises(sp.WorkerCrashed) as caught:
                    await pool.execute("sleep", {"seconds": 60})
                failures.append(caught.value)

            async with runtime.events.subscribe("worker.gone", "worker.ready") as events:
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(call)
                    while not pool.stats().in_flight:
                        await anyio.sleep(0.005)
                    await anyio.sleep(interval)  # So that a heartbeat was answered under the call.
                    cut = anyio.current_time()
                    if how == "link":
                        first.cut()
                    else:
                        first.lose(100)
                noticed = anyio.current_time() - cut
                gone = await anext(events)
                assert gone.metadata["worker_id"] == old.id
                assert gone.metadata["reason"] == "heartbeat"
                ready = await anext(events)
            # The last sign of life may be as old as one interval; the rest is for a busy machine.
            assert interval * (misses - 1) - 0.1 <= noticed < interval * misses + 3
            assert failures[0].details["reason"] == "heartbeat"
            (new,) = pool.workers()
            assert ready.metadata["worker_id"] == new.id
            assert new.address.startswith(f"tcp:{second.address}:")
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
    assert not [process for process in psutil.process_iter(["cmdline"]) if old.id in (process.info["cmdline"] or ())]


async def test_nothing_can_be_read_on_the_way(net: Network, far: Any) -> None:
    place = net.far[0]
    secret, clear = b"the-secret-argument-" + os.urandom(8).hex().encode(), b"said-in-the-clear"
    seen = bytearray()
    with anyio.fail_after(110), place.tap() as tapped:
        looked_away = anyio.Event()

        async def read() -> None:
            while clear not in seen:
                await anyio.wait_readable(tapped)
                seen.extend(tapped.recv(1 << 16))
            looked_away.set()

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(read)
            async with runtime_at(far, node(place)) as runtime:
                pool = runtime.pool("default")
                token = pool._services.token
                assert await pool.execute("echo", {"value": secret}) == secret
                assert await pool.execute("echo", {"value": secret * 1000}, metadata={"k": secret.decode()})
                # A stranger at this end of the link, without a certificate.
                host, _, port = pool.workers()[0].address.removeprefix("tcp:").rpartition(":")
                assert not await _answers(host, int(port), token, tls=True)
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                # The tap does see what is not encrypted.
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
                    plain.sendto(clear, (place.address, 9))
                await looked_away.wait()
                # And one that does not even try, whose own words are in the clear.
                assert not await _answers(host, int(port), token, tls=False)
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
    assert seen.count(RECORD) > 10
    assert len(seen) > 2 * 1000 * len(secret)
    for word in (secret, token.encode(), b"authorization", b"WorkerService", BASIC.encode()):
        assert word not in seen, word


async def _answers(host: str, port: int, token: str, *, tls: bool) -> bool:
    """Whether a worker answers somebody who even knows the token."""
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    async with make_wire(sniffio.current_async_library()) as wire:
        try:
            connection = await wire.connect(
                f"tcp:{host}:{port}", token=token, max_message=1 << 20, tls=context, name="w"
            )
        except OSError:
            return False
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(connection.serve)
            try:
                with anyio.fail_after(20):
                    await connection.unary("/grpc.health.v1.Health/Check", b"")
            except RpcFailure:
                return False
            finally:
                connection.close()
    return True
