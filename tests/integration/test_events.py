"""Every event of the catalogue is emitted, each by a scenario that says so; what it carries is checked by the catalogue."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.observe.catalogue import CATALOGUE, FINAL
from snakepit_trio.observe.events import EventBus, EventStream

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"
SHAKY = "tests.adapters.shaky"

Scenario = Callable[["Seen", Path], Awaitable[None]]
SCENARIOS: dict[Scenario, frozenset[str]] = {}


class Seen:
    """What a scenario has seen."""

    def __init__(self) -> None:
        self.events: list[sp.Event] = []
        self._stream: EventStream | None = None

    @asynccontextmanager
    async def of(self, config: sp.RuntimeConfig | sp.PoolConfig) -> AsyncIterator[sp.Runtime]:
        """A runtime whose events are seen, from its first to its last."""
        if isinstance(config, sp.PoolConfig):
            config = sp.RuntimeConfig(pools=[config])
        async with sp.open_runtime(config) as runtime:
            self.events += runtime.events.history
            async with runtime.events.subscribe() as self._stream:
                yield runtime
                self.look()
        late = list(runtime.events.history)
        self.events += [event for event in late if event not in self.events]

    def look(self) -> None:
        """Take what has come."""
        assert self._stream is not None
        while (event := self._stream.receive_nowait()) is not None:
            self.events.append(event)

    async def until(self, name: str) -> sp.Event:
        """Wait for an event of this name."""
        assert self._stream is not None
        async for event in self._stream:
            self.events.append(event)
            if event.name == name:
                return event
        raise AssertionError(f"the end came before {name}")

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


def scenario(*names: str) -> Callable[[Scenario], Scenario]:
    """This scenario emits these events."""

    def note(run: Scenario) -> Scenario:
        SCENARIOS[run] = frozenset(names)
        return run

    return note


async def refused(call: Awaitable[Any]) -> None:
    try:
        await call
    except sp.SnakepitError:
        return
    raise AssertionError("it was not refused")


@scenario(
    "request.queued", "request.dispatched", "request.completed", "request.failed", "request.cancelled",
    "request.expired", "request.rejected", "queue.saturated", "queue.relieved", "worker.starting", "worker.ready",
    "worker.draining", "worker.stopped", "worker.gone", "pool.opened", "pool.closing", "pool.closed",
)  # fmt: skip
async def calls(seen: Seen, place: Path) -> None:
    ids = set()
    async with seen.of(sp.PoolConfig(adapter=BASIC, size=1, max_queue=2, prefetch=0)) as runtime:
        pool = runtime.pool()
        ids.add((await pool.execute("whoami"))["request_id"])
        await refused(pool.execute("fail", {"message": "no"}))
        await refused(pool.execute("sleep", {"seconds": 0.2}, timeout=0.02))
        with anyio.move_on_after(0.05):
            await pool.execute("wait_for_cancel", {"marker": str(place / "m")}, timeout=5)
        await pool.execute("add", {"a": 1, "b": 2})
        gate = place / "gate"
        async with anyio.create_task_group() as nursery:
            for _ in range(3):
                nursery.start_soon(pool.execute, "wait_for_file", {"marker": os.devnull, "path": str(gate)})
            while pool.stats().queued < 2:
                await anyio.sleep(0.001)
            await refused(pool.execute("add", {"a": 1, "b": 2}))
            gate.touch()
        async with pool.stream("count", {"n": 2}) as chunks:
            assert [chunk async for chunk in chunks] == [0, 1]
    finals = Counter(event.metadata["request_id"] for event in seen.events if event.name in FINAL)
    begun = {event.metadata["request_id"] for event in seen.events if event.name.startswith("request.")}
    assert finals == Counter(begun), "each request ends exactly once"
    assert ids <= begun
    for event in seen.events:
        if event.name == "request.dispatched":
            assert event.measurements["queue_wait"] >= 0
        if event.name in ("request.completed", "request.failed"):
            assert event.metadata["worker_id"]


@scenario(
    "worker.crashed",
    "slot.restarted",
    "pool.resized",
    "worker.recycled",
    "worker.tainted",
    "worker.cordoned",
    "worker.uncordoned",
)
async def supervision(seen: Seen, place: Path) -> None:
    async with seen.of(sp.PoolConfig(adapter=BASIC, size=1, cancel_grace=0.02)) as runtime:
        pool = runtime.pool()
        await refused(pool.execute("die"))
        failed = await seen.until("request.failed")
        assert failed.metadata["worker_id"]
        await seen.until("worker.ready")
        await pool.resize(2)
        await pool.rolling_restart()
        for cordoned in (True, False):
            pool.cordon(pool.workers()[0].id, cordoned=cordoned)
        async with anyio.create_task_group() as nursery:
            params = {"marker": str(place / "begun"), "path": str(place / "never")}
            nursery.start_soon(pool.execute, "wait_for_file", params)
            while not (place / "begun").exists():
                await anyio.sleep(0.001)
            nursery.cancel_scope.cancel()
        await seen.until("worker.tainted")


@scenario("slot.failed", "slot.recovered", "pool.failed")
async def failure(seen: Seen, place: Path) -> None:
    bad = place / "bad"
    config = sp.PoolConfig(
        adapter="tests.adapters.moody", size=1, env={"MOODY": str(bad)}, restart_limit=0, restart_window=0.05,
        backoff_max=0.05,
    )  # fmt: skip
    async with seen.of(config) as runtime:
        bad.touch()
        await refused(runtime.pool().execute("die"))
        await seen.until("pool.failed")
        bad.unlink()
        await seen.until("slot.recovered")


@scenario("worker.heartbeat_missed")
async def silence(seen: Seen, place: Path) -> None:
    config = sp.PoolConfig(adapter=BASIC, size=1, heartbeat_interval=0.05, heartbeat_misses=1000)
    async with seen.of(config) as runtime:
        (worker,) = runtime.pool().workers()
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            event = await seen.until("worker.heartbeat_missed")
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert event.metadata["worker_id"] == worker.id
        assert event.measurements["silence"] > 0


@scenario("session.opened", "session.closed", "session.expired", "program.stored", "program.deleted")
async def stores(seen: Seen, place: Path) -> None:
    async with seen.of(sp.PoolConfig(adapter=BASIC, size=1)) as runtime:
        async with runtime.pool().session("one"):
            pass
        async with runtime.pool().session("two", ttl=0.05, detach=True):
            await seen.until("session.expired")
        await runtime.programs.put("p", b"1234")
        await runtime.programs.delete("p")
        assert not await runtime.programs.delete("p")
    assert Counter(seen.names)["program.deleted"] == 1


@scenario("circuit.opened", "circuit.half_open", "circuit.closed", "policy.retried", "policy.hedged", "policy.limited")
async def policies(seen: Seen, place: Path) -> None:
    config = sp.PoolConfig(
        adapter=SHAKY,
        size=2,
        retry=sp.RetryConfig(attempts=2, delay=0.001, jitter=0, on=["ConnectionError"]),
        hedge=sp.HedgeConfig(delay=0.05),
        circuit=sp.CircuitConfig(min_calls=1, failure_rate=0.9, open_for=0.3),
        limits=[sp.LimitConfig(tools=["peak"], concurrency=1)],
    )
    async with seen.of(config) as runtime:
        pool = runtime.pool()
        # The first failure opens the circuit, which the second attempt finds open.
        await refused(pool.execute("refuse_once", {"marker": str(place / "a")}))
        await anyio.sleep(0.31)
        assert await pool.execute("refuse_once", {"marker": str(place / "a")}) == "there"
        assert await pool.execute("slow_once", {"marker": str(place / "b")}) == "quick"
        (place / "c").mkdir()
        async with anyio.create_task_group() as nursery:
            for _ in range(2):
                nursery.start_soon(pool.execute, "peak", {"directory": str(place / "c")})


@scenario("recorder.dumped")
async def recorder(seen: Seen, place: Path) -> None:
    pools = [sp.PoolConfig(adapter=BASIC, size=1)]
    async with seen.of(sp.RuntimeConfig(pools=pools, state_dir=str(place))) as runtime:
        path = runtime.recorder.write()
        assert path is not None
        assert path.is_relative_to(place)


CLIENT = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
ping = channel.unary_unary("/snakepit.v1.BridgeService/Ping")
ping(b"", metadata=[("authorization", "Bearer " + sys.argv[2])], timeout=10)
channel.close()
"""


@scenario("bridge.opened", "bridge.closing", "bridge.client_joined", "bridge.client_left", "bridge.client_refused")
async def bridge(seen: Seen, place: Path) -> None:
    if find_spec("grpc") is None:
        pytest.skip("grpcio is not installed")
    pools = [sp.PoolConfig(adapter=BASIC, size=1)]
    door = sp.BridgeConfig(address="tcp:127.0.0.1:0", max_connections=1)
    async with seen.of(sp.RuntimeConfig(pools=pools, bridge=door)) as runtime:
        assert runtime.bridge is not None
        address = runtime.bridge.address.removeprefix("tcp:")
        host, _, port = address.rpartition(":")
        code = CLIENT.replace("channel.close()", "print(flush=True); sys.stdin.read(); channel.close()")
        async with await anyio.open_process([sys.executable, "-c", code, address, runtime.bridge.token]) as client:
            await seen.until("bridge.client_joined")
            async with await anyio.connect_tcp(host, int(port)):
                await seen.until("bridge.client_refused")
            assert client.stdin is not None
            await client.stdin.aclose()
            left = await seen.until("bridge.client_left")
            assert left.metadata["known"]


@scenario("bridge.client_expelled")
async def unruly_client(seen: Seen, place: Path) -> None:
    pools = [sp.PoolConfig(adapter=BASIC, size=1)]
    door = sp.BridgeConfig(address=f"unix:{place}/door")
    async with seen.of(sp.RuntimeConfig(pools=pools, bridge=door)):
        async with await anyio.connect_unix(f"{place}/door") as client:
            ping = b"\0\0\x08\x06\0\0\0\0\0" + b"12345678"
            await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0" + 3000 * ping)
            event = await seen.until("bridge.client_expelled")
            assert "too many frames" in event.metadata["reason"]


@scenario("runtime.internal_error")
async def fault_of_ours(seen: Seen, place: Path) -> None:
    async def keep(self: object) -> None:
        raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snakepit_trio.sessions.directory.SessionDirectory.keep", keep)
        async with seen.of(sp.PoolConfig(adapter=BASIC, size=1)):
            event = await seen.until("runtime.internal_error")
    assert (event.metadata["ended"], event.metadata["error"]) == ("service", "ZeroDivisionError")


@pytest.mark.parametrize("run", SCENARIOS, ids=lambda run: run.__name__)
async def test_scenario(run: Scenario, tmp_path: Path, internal_errors: list[BaseException]) -> None:
    seen = Seen()
    with anyio.fail_after(60):
        await run(seen, tmp_path)
    assert bool(internal_errors) == (run is fault_of_ours), internal_errors
    missing = SCENARIOS[run] - set(seen.names)
    assert not missing, sorted(missing)


def test_every_event_of_the_catalogue_has_a_scenario() -> None:
    covered = frozenset().union(*SCENARIOS.values())
    assert covered == CATALOGUE.keys()


async def test_events_of_tools() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.telling", size=1) as pool:
            async with pool.runtime.events.subscribe("progress") as events:
                id = await pool.execute("tell", {"name": "progress.half", "text": "password=hunter2"})
                event = await anext(events)
                (worker,) = pool.workers()
                assert event.name == "progress.half"
                assert event.measurements == {"done": 0.5}
                facts = {"pool": "default", "worker_id": worker.id, "request_id": id, "pid": worker.pid, "slot": 0}
                assert event.metadata == {"text": "password=[redacted]", "token": "[redacted]", **facts}
            for arguments in (
                {"name": "request.completed"}, {"name": "no good"}, {"name": "x", "text": "long " * 5000},
            ):  # fmt: skip
                with pytest.raises(sp.InvalidParameter):
                    await pool.execute("tell", {"text": "", **arguments})
            with pytest.raises(sp.InvalidParameter, match="must be a number"):
                await pool.execute("measure_badly")


async def test_a_flood_of_events_holds_nobody_up() -> None:
    with anyio.fail_after(60):
        async with sp.open_pool("tests.adapters.telling", size=1) as pool:
            async with pool.runtime.events.subscribe("flood", capacity=10) as events:
                assert await pool.execute("flood", {"n": 20_000}) == 20_000
                assert events.receive_nowait() is not None
                assert events.dropped > 0
            assert await pool.execute("flood", {"n": 10}) == 10


async def test_what_can_be_subscribed_to() -> None:
    bus = EventBus()
    for prefixes, options, path in (
        ((3,), {}, "prefixes"),
        (("worker.", None), {}, "prefixes"),
        ((), {"capacity": 0}, "capacity"),
        ((), {"capacity": 1.5}, "capacity"),
    ):
        with pytest.raises(sp.InvalidParameter) as caught:
            async with bus.subscribe(*prefixes, **options):
                pass
        assert caught.value.details["path"] == path
