"""A call finds its task, its context and its thread's event loop as if it were the only one: nothing of those before it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakepit_trio.wire import codec, failures, frames
from tests.integration.test_worker_io import Driver, driver

pytestmark = pytest.mark.anyio

PLAIN, MIXED = "tests.adapters.isolated:Plain", "tests.adapters.isolated_async:Mixed"
KINDS: dict[str, dict[str, Any]] = {
    "lead": {"adapter": PLAIN},
    "threads": {"adapter": PLAIN, "threads": 2},
    "trio": {"adapter": MIXED, "worker_backend": "trio"},
    "asyncio": {"adapter": MIXED, "worker_backend": "asyncio"},
    "trio, 3 at once": {"adapter": MIXED, "worker_backend": "trio", "threads": 3},
    "asyncio, 3 at once": {"adapter": MIXED, "worker_backend": "asyncio", "threads": 3},
}


@pytest.fixture(params=["trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What is tested is the worker; which event loop drives it from outside is of no importance."""
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_begins_with_the_context_that_setup_has_left(
    kind: str, anyio_backend: str, tmp_path: Path
) -> None:
    async with driver(tmp_path, anyio_backend, **KINDS[kind]) as host:
        tools = ["bind", "bind_inline"] + (
            ["bind_async"] if "adapter" not in kind and KINDS[kind]["adapter"] is MIXED else []
        )
        streams = ["bind_and_count"] + (["bind_and_count_async"] if KINDS[kind]["adapter"] is MIXED else [])
        for together in (False, True):
            ids: list[int] = []
            for number in range(30):
                ids.append(host.call(tools[number % len(tools)], {"name": f"call {number}"}))
                if not together:
                    await host.reply(ids[-1])
            for id in ids:
                assert await host.value(id) == ["nobody", "set up"]
            for tool in streams:
                id = host.call(tool, {"name": tool}, stream=True, credits=5)
                assert (await host.reply(id)).error is None
                chunks = [codec.decode(chunk.payload) for chunk in host.found(frames.Chunk, id)]
                # A generator is one call, from its first chunk to its last.
                assert chunks == [["nobody", "set up"], [tool, tool]]


def _calls(backend: str, rng: random.Random) -> list[Callable[[], tuple[str, dict[str, Any]]]]:
    both = [
        lambda: ("leaves_a_scope", {"cancelled": rng.random() < 0.5}),
        lambda: ("leaves_a_nursery", {"tasks": rng.randrange(3), "fails": rng.random() < 0.5}),
        lambda: ("bind_async", {"name": "x"}),
        lambda: ("bind", {"name": "x"}),
    ]
    asyncio_only = [
        lambda: ("leaves_a_timer", {"seconds": rng.choice([0.0, 0.001, 0.01])}),
        lambda: ("cancels_itself", {}),
        lambda: ("swallows", {}),
    ]
    return both + (asyncio_only if backend == "asyncio" else [])


@pytest.mark.parametrize("kind", [kind for kind, options in KINDS.items() if options["adapter"] == MIXED])
async def test_what_a_call_leaves_behind_is_found_by_no_other(kind: str, anyio_backend: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    options = KINDS[kind]
    async with driver(tmp_path, anyio_backend, **options) as host:
        leavers = _calls(options["worker_backend"], rng)
        for _ in range(5):
            probes, others = [], []
            for _ in range(20):
                others.append(host.call(*rng.choice(leavers)()))
                probes += [host.call("probe", {"seconds": rng.choice([0.0, 0.005])}) for _ in range(rng.randrange(3))]
            for id in probes:
                assert await host.value(id) == []
            for id in others:
                # A scope that is left open, or a nursery with its scope, is an error of the one that has left it.
                error = (await host.reply(id)).error
                assert error is None or "cancel scope" in failures.message_of(error).lower()


class _Host(Driver):
    """Answers each call to the host at once."""

    def _message(self, message: bytes) -> None:
        super()._message(message)
        frame = self.frames[-1]
        if isinstance(frame, frames.HostCall):
            self.send(frames.HostReply(frame.id, codec.encode("hello")))


@pytest.mark.parametrize("kind", ["lead", "threads", "trio", "asyncio"])
async def test_a_tool_keeps_its_own_event_loop(kind: str, anyio_backend: str, tmp_path: Path) -> None:
    async with driver(tmp_path, anyio_backend, made=_Host, **KINDS[kind]) as host:
        assert await host.value(host.call("emits", {"steps": 20})) == 20
        assert "main" in await host.value(host.call("emits_in_trio", {}))
        id = host.call("streams_in_loop", {"n": 6}, stream=True, credits=2)
        for chunks in (2, 4, 6):
            await host.until(lambda chunks=chunks: len(host.found(frames.Chunk, id)) == chunks)
            host.send(frames.Credit(id, 2))
        assert (await host.reply(id)).error is None
        assert len(host.found(frames.Chunk, id)) == 6
