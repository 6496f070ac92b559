"""Stock clients over a longer time: TLS, health that changes, clients that die, a host that goes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

import snakepit_trio as sp
from tests.clients.running import STOCK, bridged, call, environment, live, payload, stock, value
from tests.until import appears

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
ASYNC = "tests.adapters.asynchronous"
SERVING, NOT_SERVING = {"status": "SERVING"}, {"status": "NOT_SERVING"}


def certificates(place: Path) -> dict[str, str]:
    """Files of an authority, of a server and a client that it knows, and of a stranger, by the client's variables."""
    trustme = pytest.importorskip("trustme")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(place / "ca.pem")
    for name, ca in (("server", authority), ("known", authority), ("stranger", stranger)):
        made = ca.issue_cert("localhost", "127.0.0.1")
        made.private_key_pem.write_to_path(place / f"{name}.key")
        (place / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    return {
        "SNAKEPIT_CA": str(place / "ca.pem"),
        "SNAKEPIT_CERT": str(place / "known.pem"),
        "SNAKEPIT_KEY": str(place / "known.key"),
    }


def server_files(place: Path, *, mutual: bool) -> sp.TlsConfig:
    ca = str(place / "ca.pem") if mutual else None
    return sp.TlsConfig(cert=str(place / "server.pem"), key=str(place / "server.key"), ca=ca)


async def test_tls_and_mutual_tls_with_stock_clients(stubs: Path, tmp_path: Path) -> None:
    known = certificates(tmp_path)
    anonymous = {"SNAKEPIT_CA": known["SNAKEPIT_CA"]}
    big = "x" * 60_000
    steps = [
        call("add", {"a": 1, "b": 2}),
        call("echo", {"value": big}),
        ["ExecuteStreamingTool", {"tool": "count", "payload": payload({"n": 300})}, {}],
    ]
    # Server's certificate only, then the client's too; each with whom it is for, and with whom it is not.
    for mutual, welcome, unwelcome in (
        (False, ("aio", anonymous), ("sync", {})),
        (True, ("sync", known), ("aio", anonymous)),
    ):
        found: dict[str, list[Any]] = {}
        async with bridged(address="tcp:localhost:0", tls=server_files(tmp_path, mutual=mutual)) as runtime:

            async def ask(kind: str, files: dict[str, str], steps: list[Any]) -> None:
                found[kind] = await stock(kind, runtime, stubs, steps, **files)  # noqa: B023

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(ask, *welcome, steps)
                nursery.start_soon(ask, *unwelcome, steps[:1])
        assert found[unwelcome[0]][0]["code"] == "UNAVAILABLE"
        total, echoed, chunks = found[welcome[0]]
        assert value(total) == 3
        assert value(echoed) == big
        assert [value(chunk) for chunk in chunks] == list(range(300))


async def test_mutual_tls_with_node(node: Path, tmp_path: Path) -> None:
    files = certificates(tmp_path)
    async with bridged(address="tcp:localhost:0", tls=server_files(tmp_path, mutual=True)) as runtime:
        assert runtime.bridge is not None
        program = ["node", str(STOCK.with_suffix(".js")), str(ROOT / "protos"), runtime.bridge.address]
        env = environment(runtime, tmp_path, NODE_PATH=str(node), **files)
        found = json.loads((await anyio.run_process(program, env=env, stderr=None)).stdout)
        assert found["sum"] == 3
        assert found["all"] == {"chunks": [0, 1, 2]}


async def test_health_is_told_as_workers_come_and_go(stubs: Path) -> None:
    adapters = {"left": "tests.adapters.basic", "right": "tests.adapters.basic"}
    pools = [sp.PoolConfig(name=name, adapter=adapter, size=1) for name, adapter in adapters.items()]
    async with bridged(*pools) as runtime, live(runtime, stubs) as client:
        for service in ("", "left", "right", "nothing"):
            await client.begin(f"watch {service}", "Health/Watch", {"service": service})
        for service in ("", "left", "right"):
            await client.hears(f"watch {service}", lambda said: said[-1:] == [SERVING])
        await client.hears("watch nothing", lambda said: said == [{"status": "SERVICE_UNKNOWN"}])
        left = runtime.pool("left")

        async def flickers(key: str, expected: list[Any]) -> None:
            assert await client.hears(key, lambda said: len(said) >= len(expected)) == expected

        # A worker that dies; there is another pool, so the whole goes on serving.
        os.kill(left.workers()[0].pid, signal.SIGKILL)
        await flickers("watch left", [SERVING, NOT_SERVING, SERVING])
        # One that is taken out of service, and put back.
        (worker,) = left.workers()
        left.cordon(worker.id)
        await flickers("watch left", [SERVING, NOT_SERVING, SERVING, NOT_SERVING])
        left.cordon(worker.id, cordoned=False)
        await flickers("watch left", [SERVING, NOT_SERVING, SERVING, NOT_SERVING, SERVING])
        assert client.said["watch "] == client.said["watch right"] == [SERVING]
        # All that there are: nothing serves any more.
        for pool in runtime.pools.values():
            pool.cordon(pool.workers()[0].id)
        await flickers("watch ", [SERVING, NOT_SERVING])
        await client.begin("check", "Health/Check", {"service": ""})
        await client.hears("check", lambda said: said[:1] == [NOT_SERVING])
        for pool in runtime.pools.values():
            pool.cordon(pool.workers()[0].id, cordoned=False)
        await flickers("watch ", [SERVING, NOT_SERVING, SERVING])
        await flickers("watch right", [SERVING, NOT_SERVING, SERVING])


async def test_a_stock_client_that_is_killed(stubs: Path, tmp_path: Path) -> None:
    pools = [sp.PoolConfig(adapter=ASYNC, size=2)]
    async with bridged(*pools) as runtime:
        pool = runtime.pool()
        async with live(runtime, stubs) as client:
            execute, stream = "BridgeService/ExecuteTool", "BridgeService/ExecuteStreamingTool"
            noted = payload({"marker": str(tmp_path / "streamed")})
            await client.begin("stream", stream, {"tool": "count_and_note", "payload": noted})
            await client.hears("stream", len)
            for name in ("a", "b", "c"):
                request = {"tool": "wait", "payload": payload({"marker": str(tmp_path / name)})}
                await client.begin(name, execute, request)
            with anyio.fail_after(20):
                while pool.stats().queued != 2:
                    await anyio.sleep(0.005)
            # One runs, whichever of them came first.
            with anyio.fail_after(60):
                while not (ran := [name for name in ("a", "b", "c") if (tmp_path / name).exists()]):
                    await anyio.sleep(0.005)
            client.process.kill()
            await client.process.wait()
            await appears(tmp_path / "streamed")
            await appears(tmp_path / f"{ran[0]}.cancelled")
            with anyio.fail_after(20):
                while pool.stats().in_flight or pool.stats().queued:
                    await anyio.sleep(0.005)
        stats = pool.stats()
        assert (stats.cancelled, stats.completed, stats.failed, stats.restarts) == (4, 0, 0, 0)
        # The two that waited never began.
        assert sum((tmp_path / name).exists() for name in ("a", "b", "c")) == 1


SERVES = """
import sys, anyio, snakepit_trio as sp

async def forever(marker: str) -> None:
    with open(marker, "w"):
        pass
    await anyio.sleep_forever()

async def main() -> None:
    async with sp.connect(sys.argv[1], token=sys.argv[2]) as client:
        async with client.session("s", detach=True) as session:
            async with client.serve_tools({"forever": forever}), client.serve_tools({"its": forever}, session=session):
                print("served", flush=True)
                await anyio.sleep_forever()

anyio.run(main, backend="asyncio")
"""


async def test_the_tools_of_a_client_that_is_killed_are_gone(tmp_path: Path) -> None:
    async with bridged(sp.PoolConfig(adapter=ASYNC, size=1)) as runtime, anyio.create_task_group() as nursery:
        assert runtime.bridge is not None
        failed: list[BaseException] = []

        async def ask() -> None:
            params = {"marker": str(tmp_path / "m")}
            with pytest.raises(sp.SnakepitError) as caught:
                await runtime.pool().execute("ask_host", {"name": "forever", "params": params})
            failed.append(caught.value)

        arguments = [runtime.bridge.address, runtime.bridge.token]
        async with await anyio.open_process([sys.executable, "-c", SERVES, *arguments], stderr=None) as process:
            assert process.stdout is not None
            with anyio.fail_after(20):
                await process.stdout.receive()
            assert "forever" in runtime.tools
            assert "its" not in runtime.tools
            known = runtime.sessions.known("s")
            assert known is not None
            assert known.tools is not None
            assert "its" in known.tools
            nursery.start_soon(ask)
            await appears(tmp_path / "m")
            process.kill()
            with anyio.fail_after(10):
                while "forever" in runtime.tools or "its" in known.tools or not failed:
                    await anyio.sleep(0.002)
        # The tool that was waiting for it is told at once, and by what kind of error.
        assert isinstance(failed[0], sp.ConnectionLost)
        assert runtime.pool().stats().in_flight == 0


async def test_a_host_that_closes_answers_what_runs_and_refuses_what_comes(stubs: Path, tmp_path: Path) -> None:
    go, closing = tmp_path / "go", anyio.Event()

    async def host(*, task_status: anyio.abc.TaskStatus[sp.Runtime]) -> None:
        async with bridged(sp.PoolConfig(adapter="tests.adapters.short", size=1, stop_grace=20)) as runtime:
            task_status.started(runtime)
            await closing.wait()

    async with anyio.create_task_group() as nursery, live(await nursery.start(host), stubs) as client:
        await client.begin("health", "Health/Watch", {"service": "default"})
        await client.hears("health", len)
        request = {"tool": "hold", "payload": payload({"marker": str(tmp_path / "begun"), "until": str(go)})}
        await client.begin("runs", "BridgeService/ExecuteTool", request)
        await appears(tmp_path / "begun")
        await client.begin("waits", "BridgeService/ExecuteTool", request)
        # Answered after the one that waits has come.
        await client.begin("ping", "BridgeService/Ping", {})
        await client.hears("ping", len)
        closing.set()
        # Whoever looks hears of it before it is over, and what waits or comes now is refused.
        await client.hears("health", lambda said: said[-1:] == [NOT_SERVING])
        await client.begin("later", "BridgeService/ExecuteTool", request)
        for key in ("waits", "later"):
            ended = await client.hears(key, len)
            assert ended[0]["code"] == "UNAVAILABLE", ended
        go.touch()
        answered = await client.hears("runs", lambda said: len(said) == 2)
        assert len(value(answered[0])) == 2
        await client.hears("health", lambda said: said[-1:] == [{"code": "OK"}])
        await client.begin("after", "BridgeService/Ping", {})
        assert (await client.hears("after", len))[0]["code"] == "UNAVAILABLE"


async def test_a_token_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    file.chmod(0o640)
    with pytest.raises(sp.ConfigError, match="by others") as caught:
        async with bridged(token_file=str(file)):
            pytest.fail("it took a token that others may know")
    assert caught.value.details["key"] == "bridge.token_file"
    assert "chmod 600" in caught.value.details["expected"]
    for text in ("", "two words\n", "\x00"):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(sp.ConfigError, match="does not hold"):
            async with bridged(token_file=str(file)):
                pytest.fail("it took no token")
    file.write_text("first\n")
    async with bridged(token_file=str(file)) as runtime:
        assert runtime.bridge is not None
        address = runtime.bridge.address

        async def known(token: str) -> bool:
            try:
                async with sp.connect(address, token=token) as client:
                    return await client.execute("add", {"a": 1, "b": 2}) == 3
            except sp.AuthenticationFailed:
                return False

        async with sp.connect(address, token_file=file) as old:
            assert await old.execute("add", {"a": 1, "b": 2}) == 3
            file.write_text("second\n")
            # A connection that is there stays; those to come need the new one, and read it by themselves.
            assert await old.execute("add", {"a": 1, "b": 2}) == 3
            assert (await known("first"), await known("second")) == (False, True)
            assert runtime.bridge.token == "second"
            connection = old._link._connection
            assert connection is not None
            connection.close()
            assert await old.execute("add", {"a": 1, "b": 2}) == 3
        # What can't be used changes nothing.
        file.write_text("third\n")
        file.chmod(0o644)
        assert (await known("second"), await known("third")) == (True, False)
        file.unlink()
        assert await known("second")
        other = tmp_path / "other"
        other.write_text("fourth\n")
        other.chmod(0o600)
        other.rename(file)
        assert (await known("second"), await known("fourth")) == (False, True)
    assert file.read_text() == "fourth\n"
