"""Host calls of one worker: their bytes, whoever leaves them unread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._fair_budget import FairBudget, Share
from snakepit_trio.tools import serving
from snakepit_trio.tools.registry import ToolRegistry
from snakepit_trio.tools.serving import HostThreads, HostToolServer
from snakepit_trio.tools.waits import Waits
from snakepit_trio.wire import codec
from snakepit_trio.wire.frames import HostCall, HostReply

pytestmark = pytest.mark.anyio

LIMIT = 1000


class Worker:
    """Keeps what it is sent; ``unread`` is what a test says."""

    def __init__(self) -> None:
        self.unread = 0
        self.replies: dict[int, HostReply] = {}
        self.killed: list[tuple[str, str]] = []

    def host_reply(self, reply: HostReply) -> None:
        self.replies[reply.id] = reply

    def kill(self, reason: str, message: str) -> None:
        self.killed.append((reason, message))

    def fail(self, exc: BaseException) -> None:
        raise AssertionError(exc)


@asynccontextmanager
async def served(functions: dict[str, Any]) -> AsyncIterator[tuple[Worker, HostToolServer, FairBudget]]:
    registry = ToolRegistry()
    registry.register_many(functions)
    worker, budget, waits = Worker(), FairBudget(LIMIT, 1), Waits()
    async with anyio.create_task_group() as nursery:
        yield (
            worker,
            HostToolServer(
                worker,
                registries=lambda request: (registry,),
                threads=HostThreads(1, waits),
                nursery=nursery,
                errors=InternalErrors(),
                share=Share(budget),
                limit=1 << 20,
                redact=str,
                prefix="run-",
            ),
            budget,
        )


class Request:
    """What a host tool's run needs of the request that it is for."""

    id, chain, permits, worker_id, session, trace = 1, (), (), "w", None, None


def call(id: int, name: str, size: int = 0) -> HostCall:
    return HostCall(id, 1, name, codec.encode({"data": bytes(size)}))


async def test_a_result_waits_for_no_worker_that_reads_nothing() -> None:
    async def give(data: bytes) -> bytes:
        return bytes(400)

    async with served({"give": give}) as (worker, server, budget):
        for id, unread in ((1, 0), (2, 50), (3, 101), (4, 100_000)):
            worker.unread = min(unread, LIMIT)
            server.begin(call(id, "give"), Request())
            with anyio.fail_after(10):
                while id not in worker.replies:
                    await anyio.lowlevel.checkpoint()
        errors = {id: None if reply.error is None else reply.error.code for id, reply in worker.replies.items()}
        assert errors == {1: None, 2: None, 3: "quota_exceeded", 4: "quota_exceeded"}
        assert not worker.killed
        assert budget.used == 0


async def test_a_worker_that_leaves_even_errors_unread_is_ended() -> None:
    async with served({}) as (worker, server, _):
        worker.unread = LIMIT + 1
        server.begin(call(1, "none"), None)
        assert worker.killed == [("protocol", "did not read the answers to its calls")]


async def test_the_bytes_of_a_call_count_until_it_has_ended_however_it_ends() -> None:
    begun = anyio.Event()

    async def wait(data: bytes) -> None:
        begun.set()
        await anyio.sleep_forever()

    async def fail(data: bytes) -> None:
        raise LookupError

    async with served({"wait": wait, "fail": fail}) as (worker, server, budget):
        of = Request()
        server.begin(call(1, "wait", 250), of)
        server.begin(call(2, "fail", 250), Request())
        server.begin(call(3, "none", 10), Request())
        server.begin(call(4, "wait", 250), Request())
        assert worker.replies.keys() == {4}
        await begun.wait()
        with anyio.fail_after(10):
            while worker.replies.keys() != {2, 3, 4}:
                await anyio.lowlevel.checkpoint()
        assert 250 <= budget.used < 300
        server.cancel_for(of)
        with anyio.fail_after(10):
            while budget.used:
                await anyio.lowlevel.checkpoint()
        for id in (5, 6):
            server.begin(call(id, "wait", 100), of)
        server.close()
        with anyio.fail_after(10):
            while budget.used:
                await anyio.lowlevel.checkpoint()


async def test_no_tool_has_a_name_that_long() -> None:
    async with served({}) as (_, server, _):
        with pytest.raises(ValueError, match="a name of 300 characters"):
            server.begin(HostCall(1, 1, "x" * 300), Request())


class Run:
    """A host call that waits for a thread."""

    def __init__(self, request: Any = None) -> None:
        self.call, self.request, self.refused = call(1, "tool"), request or Request(), None


@pytest.mark.parametrize("moment", ["while it waits", "with the thread that it has just been given"])
async def test_who_leaves_while_it_waits_for_a_thread_keeps_none(moment: str) -> None:
    threads, runs = HostThreads(1, Waits()), [cast("Any", Run()) for _ in range(3)]
    threads._holders.add(runs[0])
    ended: list[int] = []

    async def wait(number: int, scope: anyio.CancelScope) -> None:
        with scope:
            await threads._wait(runs[number])
            try:
                await anyio.lowlevel.checkpoint()
                ended.append(number)
            finally:
                threads._pass_on(runs[number])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as nursery:
            scopes = [anyio.CancelScope() for _ in runs]
            for number in (1, 2):
                nursery.start_soon(wait, number, scopes[number])
                await anyio.wait_all_tasks_blocked()
            assert repr(threads) == "<HostThreads 1 of 1, 2 wait>"
            if moment == "while it waits":
                scopes[1].cancel()
                await anyio.wait_all_tasks_blocked()
                assert repr(threads) == "<HostThreads 1 of 1, 1 wait>" and threads._holders == {runs[0]}
                threads._pass_on(runs[0])
            else:
                threads._pass_on(runs[0])
                scopes[1].cancel()
            await anyio.wait_all_tasks_blocked()
    assert ended == [2]
    assert repr(threads) == "<HostThreads 0 of 1, 0 wait>" and not threads._holders


async def test_who_is_refused_and_leaves_at_once_gives_no_thread_on(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals: list[Any] = []
    waits = SimpleNamespace(add=lambda run, needs, hopeless, refuse: refusals.append(refuse), remove=lambda run: None)
    threads, runs = HostThreads(1, cast("Any", waits)), [cast("Any", Run()) for _ in range(3)]

    class Event:
        """As on asyncio: set, and cancelled before its task has gone on."""

        def set(self) -> None:
            pass

        async def wait(self) -> None:
            refusals[-1]()
            raise LookupError

    threads._holders.add(runs[0])
    threads._waiting[runs[2]] = other = anyio.Event()
    monkeypatch.setattr(serving.anyio, "Event", Event)
    with pytest.raises(LookupError):
        await threads._wait(runs[1])
    assert runs[1].refused.details == {"tool": "tool", "threads": 1}
    assert threads._holders == {runs[0]} and list(threads._waiting) == [runs[2]] and not other.is_set()


async def test_one_result_may_be_larger_than_half_of_what_there_is() -> None:
    async def give(data: bytes) -> bytes:
        return bytes(600)

    async with served({"give": give}) as (worker, server, _):
        for id, unread in ((1, 0), (2, 1)):
            worker.unread = unread
            server.begin(call(id, "give"), Request())
            with anyio.fail_after(10):
                while id not in worker.replies:
                    await anyio.lowlevel.checkpoint()
        errors = {id: None if reply.error is None else reply.error.code for id, reply in worker.replies.items()}
        assert errors == {1: None, 2: "quota_exceeded"}
