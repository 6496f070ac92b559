"""The runtime's clients in a thread of their own: two of the bridge, one of the control socket, one of the metrics."""

from __future__ import annotations

import anyio
import anyio.from_thread

import snakepit_trio as sp
from snakepit_trio.control.client import connect as control
from tests.injection.scenario import Record, fails, same, step

__all__ = ["Clients"]


class Clients:
    """What they do in one pass."""

    def __init__(self, address: str, token: str, control_path: str, metrics: str) -> None:
        self._address = address
        self._token = token
        self._control = control_path
        self._metrics = metrics
        self._scope: anyio.CancelScope | None = None
        self._over: anyio.Event
        self.a: sp.Client
        self.b: sp.Client

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Stay connected until :meth:`end`."""
        self._over = anyio.Event()
        async with (
            sp.connect(self._address, token=self._token, pool="main", connect_timeout=2.0) as self.a,
            sp.connect(self._address, token=self._token, pool="by", connect_timeout=2.0) as self.b,
        ):
            task_status.started()
            await self._over.wait()

    async def end(self) -> None:
        self._over.set()

    async def scenario(self, record: Record) -> None:
        """One pass."""
        over = anyio.Event()

        async def bystander() -> None:
            while not over.is_set():
                await step(record, "client of by", self._one, self.b)
                with anyio.move_on_after(0.05):
                    await over.wait()

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(bystander)
            for function in (self.calls, self.streams, self.sessions, self.tools):
                await step(record, "client of main", function)
            await step(record, "strangers", self.strangers)
            await step(record, "control", self.operator)
            await step(record, "metrics", self.scrape)
            over.set()

    async def twenty(self, record: Record) -> None:
        """Twenty calls on each connection."""
        for group, client in (("client of main", self.a), ("client of by", self.b)):
            await step(record, group, self._twenty, client)

    async def _twenty(self, client: sp.Client) -> None:
        for _ in range(20):
            await self._one(client)

    async def _one(self, client: sp.Client) -> None:
        same(await client.execute("add", {"a": 1, "b": 1}), 2)

    async def calls(self) -> None:
        client = self.a
        for n in range(3):
            same(await client.execute("add", {"a": n, "b": 1}, metadata={"k": "v"}, timeout=4.0), n + 1)
        value = {"data": b"\1" * 100_000, "n": 1.5}
        same(await client.execute("echo", {"value": value}), value)
        with fails("tool_error"):
            await client.execute("fail", {"message": "as asked"})
        with fails("tool_not_found"):
            await client.execute("nothing")
        with fails("invalid_parameter"):
            await client.execute("add", {"a": 1, "b": "x"})
        with fails("pool_not_found"):
            await client.pool("nowhere").execute("add")
        with fails("request_timeout"):
            await client.execute("nap", {"seconds": 30.0}, timeout=0.05)
        with anyio.move_on_after(0.05):
            await client.execute("nap", {"seconds": 30.0})
        same(await client.pool("tasks").execute("add", {"a": 1, "b": 2}), 3)
        async with client.map("add", ({"a": n, "b": 1} for n in range(30)), limit=4) as results:
            same([result async for result in results], list(range(1, 31)))
        same((await client.ping("x")).message, "x")
        await client.tools()

    async def streams(self) -> None:
        client = self.a
        async with client.stream("count", {"n": 150}) as chunks:
            same([chunk async for chunk in chunks], list(range(150)))
        async with client.stream("blocks", {"n": 1000, "size": 50_000}) as chunks:
            async for _ in chunks:
                break
        with fails("tool_error"):
            async with client.stream("count_then_fail", {"n": 3}) as chunks:
                async for _ in chunks:
                    pass

    async def sessions(self) -> None:
        client = self.a
        async with client.session(affinity="strict_queue") as session:
            same(await session.execute("session_of"), session.id)
            await session.put("key", 1)
            same(await session.update("key", lambda value: value + 1), 2)
            same(await session.keys(), ("key",))
            async with session.stream("count", {"n": 3}) as chunks:
                same([chunk async for chunk in chunks], [0, 1, 2])
            await session.heartbeat()
            await session.delete("key")
            async with client.serve_tools({"its": self._its}, session=session):
                same(await session.execute("ask", {"name": "its", "params": {"value": 1}}), 2)
        await client.put_program("theirs", b"x")
        same(await client.get_program("theirs"), b"x")
        same(await client.delete_program("theirs"), True)

    @staticmethod
    async def _its(value: int) -> int:
        return value + 1

    async def tools(self) -> None:
        client = self.a

        async def triple(value: int) -> int:
            return 3 * value

        async def broken() -> None:
            raise LookupError("as asked")

        async def slow() -> None:
            await anyio.sleep(30)

        async with client.serve_tools({"triple": triple, "broken_there": broken, "slow_there": slow}):
            for _ in range(3):
                same(await client.execute("ask", {"name": "triple", "params": {"value": 5}}), 15)
            with fails("tool_error"):
                await client.execute("ask", {"name": "broken_there", "params": {}})
            with fails("request_timeout", "tool_error"):
                await client.execute("ask", {"name": "slow_there", "params": {}, "timeout": 0.05})
            with anyio.move_on_after(0.05):
                await client.execute("ask", {"name": "slow_there", "params": {}})

    async def strangers(self) -> None:
        """Connections that come to nothing."""
        with fails("authentication_failed"):
            async with sp.connect(self._address, token="another", connect_timeout=2.0) as client:
                await client.ping()
        for junk in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 100, b""):
            async with await anyio.connect_unix(self._address.removeprefix("unix:")) as stream:
                if junk:
                    await stream.send(junk)
                    with anyio.move_on_after(0.05):
                        await stream.receive()
        async with sp.connect(self._address, token=self._token, pool="by") as client:
            # It goes in the middle of a call.
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(client.execute, "nap", {"seconds": 30.0})
                await anyio.sleep(0.03)
                nursery.cancel_scope.cancel()

    async def operator(self) -> None:
        async with control(self._control) as client:
            await client.ask("ping")
            status = await client.ask("status", tree=True)
            worker = next(pool for pool in status["pools"] if pool["name"] == "by")["workers"][0]["id"]
            try:
                await client.ask("cordon", worker=worker)
            finally:
                await self._uncordon(worker)
            try:
                await client.ask("drain", worker=worker, timeout_seconds=2.0)
            finally:
                await self._uncordon(worker)
            await client.ask("flight")
            await client.ask("resize", pool="by", size=1)
            with fails("unknown_operation"):
                await client.ask("nothing")
        async with control(self._control) as client:
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(self.a.execute, "add", {"a": 1, "b": 1})
                async for _ in client.events("request."):
                    break

    async def _uncordon(self, worker: str) -> None:
        """Again when it fails, as an operator would: others wait for it."""
        try:
            async with control(self._control) as client:
                await client.ask("uncordon", worker=worker)
        except Exception:
            async with control(self._control) as client:
                await client.ask("uncordon", worker=worker)
            raise

    async def scrape(self) -> None:
        host, _, port = self._metrics.removeprefix("tcp:").rpartition(":")
        for path in ("/metrics", "/live", "/ready", "/nothing"):
            found = b""
            async with await anyio.connect_tcp(host, int(port)) as stream:
                try:
                    await stream.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    while True:
                        found += await stream.receive()
                except anyio.EndOfStream:
                    pass
                except anyio.BrokenResourceError:
                    found = b""
            if not found:
                raise sp.SnakepitError("it has closed the connection", code="unreachable")
            # A pool is not ready while a worker of it is replaced.
            wanted = {"/nothing": [b"404"], "/ready": [b"200", b"503"]}.get(path, [b"200"])
            if found.split(b" ")[1] not in wanted:
                raise AssertionError(f"{path}: {found[:60]!r}")
