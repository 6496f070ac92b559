"""`sp.connect`: a runtime in another process has the surface of a pool."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import snakepit_trio as sp
from snakepit_trio.client.channel import _STREAM_WINDOW as CLIENT_WINDOW
from snakepit_trio.client.streams import _MANY as CLIENT_CHUNKS
from snakepit_trio.pool.calls.stream import STREAM_WINDOW
from snakepit_trio.wire.generated.snakepit import v1
from tests.redis_server import redis_server
from tests.until import appears, settled

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"
ASYNC = "tests.adapters.asynchronous"


@asynccontextmanager
async def bridged(*adapters: str, size: int = 1, **options: Any) -> AsyncIterator[sp.Runtime]:
    """A runtime with a bridge, one pool for each adapter, named after it."""
    pools = [sp.PoolConfig(name=name.rpartition(".")[2], adapter=name, size=size) for name in adapters or (BASIC,)]
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig(**options))) as runtime:
        yield runtime


@asynccontextmanager
async def joined(runtime: sp.Runtime, **options: Any) -> AsyncIterator[sp.Client]:
    assert runtime.bridge is not None
    async with sp.connect(runtime.bridge.address, token=runtime.bridge.token, **options) as client:
        yield client


async def test_the_surface_of_a_pool() -> None:
    async with bridged(size=2) as runtime, joined(runtime) as client:
        assert await client.execute("add", {"a": 1, "b": 2}) == 3
        value = {"t": (1, 2), "b": b"\0" * 100_000, "s": {1, 2}, "n": 1 << 70, None: 1.5}
        assert await client.execute("echo", {"value": value}) == value
        async with client.stream("count", {"n": 500}) as chunks:
            assert [chunk async for chunk in chunks] == list(range(500))
        async with client.map("add", ({"a": n, "b": 1} for n in range(50)), limit=4) as results:
            assert [result async for result in results] == list(range(1, 51))
        inputs = [{"a": 1, "b": 1}, {"a": 1}, {"a": 2, "b": 2}]
        async with client.map("add", inputs, ordered=False, return_errors=True) as results:
            found = [result async for result in results]
        assert sorted(type(item).__name__ for item in found) == ["InvalidParameter", "int", "int"]
        found = await client.execute("whoami", metadata={"k": "v"}, timeout=5)
        assert found["metadata"] == {"k": "v"}
        assert 0 < found["deadline"] <= 5
        assert "add" in {spec.name for spec in await client.tools()}
        assert (await client.ping("x")).run_id == runtime.run_id
        assert "connected" in repr(client)


async def test_a_map_of_inputs_that_are_yet_to_come() -> None:
    """A result does not wait for the next input, and a reader that gives up for a moment loses nothing."""
    go, closed = anyio.Event(), []

    async def inputs() -> AsyncIterator[dict[str, int]]:
        try:
            yield {"a": 0, "b": 0}
            await go.wait()
            for n in range(1, 4):
                yield {"a": n, "b": n}
        finally:
            closed.append(True)

    with anyio.fail_after(60):
        async with bridged() as runtime, joined(runtime) as client:
            async with client.map("add", inputs(), limit=2) as results:
                assert await anext(results) == 0
                with anyio.move_on_after(0.02) as scope:
                    await anext(results)
                assert scope.cancelled_caught
                go.set()
                assert [result async for result in results] == [2, 4, 6]
                assert results.index == 3
            assert closed == [True]
            with pytest.raises(ZeroDivisionError):
                async with client.map("sleep", ({"seconds": 60} for _ in range(9)), limit=2):
                    raise ZeroDivisionError
            await settled(runtime.pool("basic"))
            with pytest.raises(sp.InvalidParameter):
                client.map("add", [], limit=0)


async def test_errors_are_those_of_a_pool() -> None:
    async with bridged(BASIC, ASYNC) as runtime, joined(runtime, pool="basic") as client:
        with pytest.raises(sp.remote(ValueError)) as raised:
            await client.execute("fail", {"message": "as asked"})
        assert raised.value.remote_message == "as asked"
        assert "Traceback" in raised.value.remote_traceback
        with pytest.raises(sp.remote("tests.adapters.basic.CustomError")):
            await client.execute("fail_with", {"name": "custom"})
        for call, kind in (
            (client.execute("nothing"), sp.ToolNotFound),
            (client.pool("nowhere").execute("add"), sp.PoolNotFound),
            (client.execute("add", {"a": 1, "b": "x"}), sp.InvalidParameter),
            (client.execute("add", {"a": object()}), sp.InvalidParameter),
            (client.execute("count", {"n": 1}), sp.StreamingUnsupported),
            (client.execute("leave", {"code": 3}), sp.WorkerCrashed),
            (client.execute("add", timeout=-1), sp.InvalidParameter),
        ):
            with pytest.raises(kind):
                await call
        with pytest.raises(sp.PoolNotFound):
            await client.pool("").execute("add")
        with pytest.raises(sp.RequestTimeout) as late:
            await client.pool("asynchronous").execute("wait", {"marker": os.devnull}, timeout=0.5)
        assert late.value.details["phase"] == "running"
        with pytest.raises(sp.StreamingUnsupported, match="generator"):
            async with client.stream("add", {"a": 1, "b": 2}) as chunks:
                await anext(chunks)
        got = []
        with pytest.raises(sp.remote(ValueError)):
            async with client.stream("count_then_fail", {"n": 3}) as chunks:
                async for chunk in chunks:
                    got.append(chunk)  # noqa: PERF401
        assert got == [0, 1, 2]
        with pytest.raises(KeyError, match="mine"):
            async with client.stream("count", {"n": 3}) as chunks:
                raise KeyError("mine")
        await settled(runtime.pool("basic"))


async def test_a_cancel_reaches_into_the_worker(tmp_path: Path) -> None:
    async with bridged(ASYNC) as runtime, joined(runtime) as client:
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(client.execute, "wait", {"marker": str(tmp_path / "m")})
            await appears(tmp_path / "m")
            nursery.cancel_scope.cancel()
        await appears(tmp_path / "m.cancelled")
        async with client.stream("count_and_note", {"marker": str(tmp_path / "n")}) as chunks:
            assert [await anext(chunks) for _ in range(3)] == [0, 1, 2]
        await appears(tmp_path / "n")
        await settled(runtime.pool("asynchronous"))
        assert runtime.pool("asynchronous").stats().restarts == 0


async def test_a_queued_call_leaves_the_queue() -> None:
    async with bridged(ASYNC) as runtime, joined(runtime) as client:
        pool = runtime.pool("asynchronous")
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "wait", {"marker": os.devnull})
            while not pool.stats().in_flight:
                await anyio.sleep(0.002)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(client.execute, "which")
                    while not pool.stats().queued:
                        await anyio.sleep(0.002)
                    scope.cancel()
            with anyio.fail_after(30):
                while pool.stats().queued:
                    await anyio.sleep(0.002)
            nursery.cancel_scope.cancel()


async def test_a_reader_that_pauses_holds_the_generator_back(tmp_path: Path) -> None:
    marker = tmp_path / "reached"
    n, size = 1000, 16 * 1024
    async with bridged() as runtime, joined(runtime) as client:
        async with client.stream("count_and_note", {"n": n, "marker": str(marker), "size": size}) as chunks:
            assert await anext(chunks) == bytes(size)
            assert chunks.opened is not None
            pipe = chunks.opened.rpc.pipe
            (seats,) = runtime.pool("basic")._scheduler.ledger.seats
            (request,) = seats.running.values()
            source: Any = request.stream  # type: ignore[union-attr]
            # The server may send this client no further chunk, and the worker has no leave to make another one.
            with anyio.fail_after(30):
                while (
                    pipe._h2.remote_flow_control_window(pipe._id) > size
                    or len(source._chunks) + source._taken < STREAM_WINDOW
                ):
                    await anyio.sleep(0.005)
        await appears(marker)
        with anyio.fail_after(30):
            while not marker.read_text():
                await anyio.sleep(0.005)
        # What waits in the pool and at the client, what fills the client's window, and one that the bridge has in its hands.
        assert int(marker.read_text()) <= 1 + STREAM_WINDOW + CLIENT_CHUNKS + CLIENT_WINDOW // size + 1


async def test_a_stream_is_for_one_reader_and_tells_it_that_it_was_left() -> None:
    with anyio.fail_after(60):
        async with bridged(ASYNC) as runtime, joined(runtime, pool="asynchronous") as client:
            told: list[type[BaseException]] = []

            async def read(chunks: AsyncIterator[int]) -> None:
                try:
                    await anext(chunks)
                except anyio.ClosedResourceError as exc:
                    told.append(type(exc))

            async with anyio.create_task_group() as nursery:
                async with client.stream("naps") as chunks:
                    assert [await anext(chunks), await anext(chunks)] == [1, 2]
                    nursery.start_soon(read, chunks)
                    await anyio.wait_all_tasks_blocked()
                    with pytest.raises(anyio.BusyResourceError):
                        await anext(chunks)
            assert told == [anyio.ClosedResourceError]
            with pytest.raises(anyio.ClosedResourceError):
                await anext(chunks)


async def test_sessions() -> None:
    async with bridged(size=2) as runtime, joined(runtime) as client:
        async with client.session("s", affinity="strict_queue", ttl=60, metadata={"a": "b"}) as session:
            pids = {(await session.execute("whoami"))["pid"] for _ in range(5)}
            assert len(pids) == 1
            assert await session.put("k", (1, 2)) == 1
            assert await session.put("k", 1, expect=9) is None
            assert await session.get("k") == (1, 2)
            assert await session.get("nothing", default=7) == 7
            assert await session.update("n", lambda n: n + 1, default=0) == 1
            assert await session.keys() == ("k", "n")
            assert await session.delete("n")
            assert await session.heartbeat() == 60
            for ttl in (0, -1, 0.0, True, float("nan"), "60"):
                with pytest.raises(sp.InvalidParameter, match="ttl"):
                    async with client.session("refused", ttl=ttl):  # type: ignore[arg-type]
                        pass
            assert [info.id for info in await runtime.sessions.list()] == ["s"]
            for ttl in (None, 1e12):
                async with client.session("endless", ttl=ttl) as endless:
                    assert endless.ttl is None
            assert (await runtime.sessions.get("s")).metadata == {"a": "b"}
            async with session.stream("count", {"n": 3}) as chunks:
                assert [chunk async for chunk in chunks] == [0, 1, 2]
        with pytest.raises(sp.SessionNotFound):
            await session.execute("whoami")
        async with client.session("kept", detach=True) as session:
            await session.put("k", "v")
        async with client.session("kept") as session:
            assert await session.get("k") == "v"
        await client.put_program("p", b"code")
        assert await client.get_program("p") == b"code"
        assert await client.delete_program("p")
        assert await client.get_program("p", default=b"") == b""


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
async def test_a_handle_of_a_session_that_another_has_made_anew(kind: str, tmp_path: Path) -> None:
    """By another host of the same store, or by another client of the same host."""
    with anyio.fail_after(60), ExitStack() as stack:
        store = {"memory": "memory", "sqlite": f"sqlite:{tmp_path}/store.db"}.get(kind) or stack.enter_context(
            redis_server()
        )
        pools = [sp.PoolConfig(adapter=BASIC, size=1)]
        config = sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig(), store=store)
        async with AsyncExitStack() as hosts:
            one = await hosts.enter_async_context(sp.open_runtime(config))
            two = one if kind == "memory" else await hosts.enter_async_context(sp.open_runtime(config))
            here, there = [await hosts.enter_async_context(joined(runtime)) for runtime in (one, two)]
            async with here.session("s", affinity="strict_queue") as old:
                version = await old.put("who", "old user")
                assert await old.execute("add", {"a": 1, "b": 2}) == 3
                assert await two.sessions.close("s")
                new = await hosts.enter_async_context(there.session("s", detach=True))
                assert new.generation != old.generation
                await new.put("who", "new user")

                async def stream() -> None:
                    async with old.stream("count", {"n": 1}) as chunks:
                        await anext(chunks)

                async def serve() -> None:
                    async with here.serve_tools({"f": lambda: None}, session=old):
                        pass

                async def execute() -> None:
                    await old.execute("add", {"a": 1, "b": 2})

                for call in (
                    execute, stream, serve, old.keys, old.heartbeat, lambda: old.get("who"), lambda: old.get_versioned("who"),
                    lambda: old.put("who", "overwritten", expect=version), lambda: old.delete("who"),
                    lambda: old.update("who", str),
                ):  # fmt: skip
                    with pytest.raises(sp.SessionNotFound):
                        await call()
            # Neither its end nor its block's is the new one's.
            await old.close()
            assert await new.get("who") == "new user"
            assert await new.execute("add", {"a": 1, "b": 2}) == 3
            assert (await two.sessions.get("s")).generation == new.generation


async def test_tools_that_the_client_serves() -> None:
    async with bridged(ASYNC) as runtime, joined(runtime) as client:

        async def double(n: int) -> int:
            """Twice as much."""
            await anyio.lowlevel.checkpoint()
            return 2 * n

        def broken() -> None:
            raise KeyError("here")

        ask = {"name": "double", "params": {"n": 21}}
        async with client.serve_tools({"double": double, "broken": broken}):
            assert runtime.tools.get("double").description == "Twice as much."
            assert await client.execute("ask_host", ask) == 42
            # It has its type, in the worker and back here.
            assert await client.execute("ask_and_catch", {"name": "broken"}) == "caught KeyError"
            with pytest.raises(sp.remote(KeyError), match="KeyError: 'here'"):
                await client.execute("ask_host", {"name": "broken", "params": {}})
            with pytest.raises(sp.ToolExists):
                async with client.serve_tools({"other": double, "double": double}):
                    pass
            assert "other" not in runtime.tools
            with pytest.raises(sp.InvalidParameter):
                async with client.serve_tools({"fine": double, "not fine": double}):
                    pass
            assert "fine" not in runtime.tools
        with anyio.fail_after(30):
            while "double" in runtime.tools:
                await anyio.sleep(0.005)
        with pytest.raises(sp.SnakepitError):
            await client.execute("ask_host", ask)
        async with client.session() as session:
            async with client.serve_tools({"double": double}, session=session):
                assert "double" not in runtime.tools
                assert await session.execute("ask_host", ask) == 42


async def test_a_clients_tool_is_described_by_its_own_schemas() -> None:
    schemas = {"parameters_schema": '{"properties": {"n": {}}}', "result_schema": '{"type": "number"}'}
    said, silent = v1.ToolSpec(name="said", **schemas), v1.ToolSpec(name="silent")
    async with bridged() as runtime, joined(runtime) as client:
        link = client._link
        await link.unary("RegisterTools", v1.RegisterToolsRequest(tools=[said, silent]), v1.RegisterToolsResponse)
        found = await link.unary("GetTool", v1.GetToolRequest(tool="said", host=True), v1.GetToolResponse)
        assert found.tool is not None
        assert {name: getattr(found.tool, name) for name in schemas} == schemas
        listed = await link.unary("ListTools", v1.ListToolsRequest(host=True), v1.ListToolsResponse)
        first, second = listed.tools
        assert first == found.tool
        assert json.loads(second.parameters_schema) == {"type": "object", "properties": {}, "required": []}


async def test_a_connection_that_was_lost_is_made_anew(tmp_path: Path) -> None:
    path, token = f"unix:{tmp_path}/b.sock", "the-same-token"

    async def host(down: anyio.Event, *, task_status: Any) -> None:
        async with bridged(ASYNC, address=path, token=token):
            task_status.started()
            await down.wait()

    failed: list[BaseException] = []

    async def waits(client: sp.Client) -> None:
        try:
            await client.execute("wait", {"marker": str(tmp_path / "m")})
        except sp.SnakepitError as exc:
            failed.append(exc)

    async with anyio.create_task_group() as nursery:
        downs = [anyio.Event(), anyio.Event()]
        await nursery.start(host, downs[0])
        async with sp.connect(path, token=token, connect_timeout=1) as client:
            assert await client.execute("sync_add", {"a": 1, "b": 1}) == 2
            async with anyio.create_task_group() as calls:
                calls.start_soon(waits, client)
                await appears(tmp_path / "m")
                connection = client._link._connection
                assert connection is not None
                connection.transport.abort()
            assert isinstance(failed[0], sp.ConnectionLost)
            assert failed[0].retryable
            await appears(tmp_path / "m.cancelled")
            assert await client.execute("sync_add", {"a": 1, "b": 1}) == 2
            downs[0].set()
            while (tmp_path / "b.sock").exists():
                await anyio.sleep(0.005)
            with anyio.move_on_after(0.2) as scope:
                await client.execute("sync_add", {"a": 2, "b": 2})
            assert scope.cancelled_caught
            await nursery.start(host, downs[1])
            assert await client.execute("sync_add", {"a": 2, "b": 2}) == 4
            downs[1].set()
            while (tmp_path / "b.sock").exists():
                await anyio.sleep(0.005)
            with pytest.raises(sp.ConnectionLost):
                await client.execute("sync_add", {"a": 2, "b": 2})


async def test_who_can_not_come_in(tmp_path: Path) -> None:
    async with bridged() as runtime:
        assert runtime.bridge is not None
        with pytest.raises(sp.AuthenticationFailed):
            async with sp.connect(runtime.bridge.address, token="wrong"):
                pytest.fail("let in")
        with pytest.raises(sp.ConfigError):
            async with sp.connect("http://localhost", token="x"):
                pytest.fail("let in")
        with pytest.raises(sp.ConfigError, match="SNAKEPIT_TOKEN"):
            async with sp.connect(runtime.bridge.address):
                pytest.fail("let in")
        file = tmp_path / "token"
        file.write_text(runtime.bridge.token + "\n")
        async with sp.connect(runtime.bridge.address, token_file=file) as client:
            assert await client.execute("add", {"a": 1, "b": 2}) == 3
    with pytest.raises(sp.ConnectionLost, match=r"No such file|refused"):
        async with sp.connect(runtime.bridge.address, token="x", connect_timeout=0.2):
            pytest.fail("let in")


async def test_tls_and_mutual_tls(tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme")
    authority, stranger = trustme.CA(), trustme.CA()
    server, mine, theirs = (ca.issue_cert("localhost", "127.0.0.1") for ca in (authority, authority, stranger))
    for name, cert in (("server", server), ("mine", mine), ("theirs", theirs)):
        cert.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        (tmp_path / f"{name}.pem").write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ca = str(tmp_path / "ca.pem")

    def files(name: str) -> sp.TlsConfig:
        return sp.TlsConfig(cert=str(tmp_path / f"{name}.pem"), key=str(tmp_path / f"{name}.key"), ca=ca)

    plain = sp.TlsConfig(cert=files("server").cert, key=files("server").key)
    big = {"value": "x" * 300_000}
    async with bridged(address="tcp:localhost:0", tls=plain) as runtime:
        async with joined(runtime, tls=ca) as client:
            assert await client.execute("echo", big) == big["value"]
            async with client.stream("count", {"n": 2000}) as chunks:
                assert [chunk async for chunk in chunks] == list(range(2000))
        with pytest.raises(sp.ConnectionLost, match="certificate"):
            async with joined(runtime, tls=True, connect_timeout=2):
                pytest.fail("an unknown authority was trusted")
        with pytest.raises(sp.ConnectionLost):
            async with joined(runtime, connect_timeout=0.3):
                pytest.fail("without TLS")
    async with bridged(address="tcp:localhost:0", tls=files("server")) as runtime:
        async with joined(runtime, tls=files("mine")) as client:
            assert await client.execute("add", {"a": 1, "b": 2}) == 3
        for tls in (ca, files("theirs")):
            with pytest.raises(sp.ConnectionLost):
                async with joined(runtime, tls=tls, connect_timeout=0.5):
                    pytest.fail("without a certificate that is known")
        async with joined(runtime, tls=files("mine")) as client:
            assert await client.execute("add", {"a": 1, "b": 2}) == 3


async def test_where_it_does_not_listen(tmp_path: Path) -> None:
    for options, text in (
        ({"address": "tcp:0.0.0.0:0"}, "other machines"),
        ({"address": f"unix:{tmp_path}/{'x' * 120}"}, "107 bytes"),
        ({"address": f"unix:{tmp_path}/nowhere/b"}, "can't listen"),
        ({"address": "tcp:127.0.0.1:0", "tls": sp.TlsConfig(cert="no.pem", key="no.key")}, "no.pem"),
        ({"token_file": str(tmp_path)}, "token_file"),
    ):
        with pytest.raises(sp.ConfigError, match=text):
            async with bridged(**options):
                pytest.fail("it listens")
    (tmp_path / "file").write_text("x")
    with pytest.raises(sp.ConfigError, match="no socket"):
        async with bridged(address=f"unix:{tmp_path}/file"):
            pytest.fail("it listens")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    async with bridged(address=f"unix:{tmp_path}/dead", token_file=str(tmp_path / "t")) as runtime:
        assert runtime.bridge is not None
        assert (tmp_path / "t").read_text().strip() == runtime.bridge.token
        assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "dead").stat().st_mode & 0o777 == 0o600
        with pytest.raises(sp.ConfigError, match="another process"):
            async with bridged(address=f"unix:{tmp_path}/dead"):
                pytest.fail("it listens")
        async with joined(runtime) as client:
            assert await client.execute("add", {"a": 1, "b": 2}) == 3
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "dead").exists()
    async with bridged(address="tcp:0.0.0.0:0", allow_plaintext=True):
        pass


def test_what_a_client_may_be_given_for_tls(tmp_path: Path) -> None:
    from snakepit_trio.client.channel import client_tls

    context = ssl.create_default_context()
    assert client_tls(context) is context
    assert client_tls(None) is None
    with pytest.raises(sp.ConfigError):
        client_tls(str(tmp_path / "nothing"))


async def test_a_client_that_registers_all_that_it_may_leaves_room_for_others() -> None:
    async def tool() -> None:
        """Never called."""

    async with bridged() as runtime, joined(runtime) as greedy, joined(runtime) as modest:
        async with AsyncExitStack() as stack:
            for number in range(32):
                await stack.enter_async_context(greedy.serve_tools({f"greedy_{number}": tool}))
            with pytest.raises(sp.QuotaExceeded) as caught:
                async with greedy.serve_tools({"one_more": tool}):
                    pass
            assert caught.value.details == {"quota": "client_registrations", "limit": 32, "used": 32, "asked": 1}
            async with modest.serve_tools({"modest": tool}):
                assert "modest" in runtime.tools
        # What it has given up it may have again.
        async with greedy.serve_tools({"one_more": tool}):
            pass
