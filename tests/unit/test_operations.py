"""What a runtime answers over its control socket, from a runtime whose figures are made up."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.control import operations
from snakepit_trio.control.operations import Operations
from snakepit_trio.control.protocol import Refusal, Request

pytestmark = pytest.mark.anyio


class Pool:
    """A pool of one worker, which notes what is done to it."""

    name = "p"
    config = SimpleNamespace(adapter="a", threads=3, max_queue=7)

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.drains = 0.0

    def workers(self) -> Any:
        return [SimpleNamespace(id="w")]

    def cordon(self, id: str, cordoned: bool = True) -> None:
        self.done.append(("cordon", id, cordoned))

    def kill_worker(self, id: str) -> None:
        self.done.append(("kill", id))

    async def recycle(self, id: str) -> bool:
        self.done.append(("recycle", id))
        return True

    async def drain(self, id: str) -> None:
        await anyio.sleep(self.drains)
        self.done.append(("drain", id))

    async def resize(self, size: int) -> None:
        if size < 0:
            raise sp.InvalidParameter("size: secret")
        self.done.append(("resize", size))

    def snapshot(self) -> dict[str, Any]:
        return {
            "stats": {"ready": 1},
            "workers": [{"id": "w", "slot": 0, "next_attempt": 5.0}, {"id": "spare", "slot": -1, "next_attempt": None}],
            "slots": [{"index": 0, "next_attempt_in": 2.5}],
            "requests": [{"phase": "running", "running_for": 1.0}, {"phase": "queued", "running_for": 3.0}],
            "ended": [{"ago": ago, "outcome": "completed", "duration": 1.0, "queue_wait": 0.5} for ago in (1, 50, 100)],
        }


class Sessions:
    """The store of sessions: how many there are, if it answers at all."""

    def __init__(self) -> None:
        self.answer: Any = ["s1", "s2"]

    async def list(self) -> Any:
        if self.answer is None:
            await anyio.sleep_forever()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Host:
    """A runtime."""

    def __init__(self) -> None:
        self.made = Pool()
        self.run_id, self.tools, self.sessions, self.bridge = (
            "r",
            [1, 2, 3],
            Sessions(),
            SimpleNamespace(address="unix:/b"),
        )
        self.pools = {"p": self.made}
        self.recorder = SimpleNamespace(dump=lambda: {"format": 1})

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            raise sp.PoolNotFound(f"no pool {name}")
        return self.pools[name]


def redact(value: Any) -> Any:
    return value.replace("secret", "***") if isinstance(value, str) else value


class Asked:
    """Asks, and keeps the runtime at hand."""

    def __init__(self) -> None:
        self.host = Host()
        self.operations = Operations(cast("Any", self.host), redact, "trio")

    async def __call__(self, op: str, **params: Any) -> dict[str, Any]:
        return await self.operations.run(Request(v=1, op=op, params=params))

    async def refused(self, op: str, **params: Any) -> tuple[str, str]:
        with pytest.raises(Refusal) as raised:
            await self(op, **params)
        return raised.value.code, raised.value.message


async def test_how_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asked()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/server.py", "secret"])
    found = await ask("status")
    assert abs(found["started"] - time.time()) < 60 and 0 <= found["uptime"] < 60
    assert found["rss"] > 1 << 20 and "tasks" not in found
    assert found["versions"].keys() == {"snakepit_trio", "python", "protocol", "control"}
    assert (found["versions"]["protocol"], found["versions"]["control"]) == (1, 1)
    shown = {name: found[name] for name in ("run_id", "pid", "program", "backend", "sessions", "host_tools", "bridge")}
    assert shown == {
        "run_id": "r", "pid": os.getpid(), "program": "server.py", "backend": "trio", "sessions": 2, "host_tools": 3,
        "bridge": "unix:/b",
    }  # fmt: skip
    (pool,) = found["pools"]
    assert (pool["name"], pool["adapter"], pool["threads"], pool["max_queue"]) == ("p", "a", 3, 7)
    assert pool["workers"] == [
        {"id": "w", "slot": 0, "next_attempt_in": 2.5}, {"id": "spare", "slot": -1, "next_attempt_in": None},
    ]  # fmt: skip
    assert pool["requests"] == [{"phase": "running", "running_for": 1.0}, {"phase": "queued", "running_for": None}]
    assert (pool["latency"]["window"], pool["latency"]["count"]) == (60.0, 2)
    assert (await ask("status", window=1.0))["pools"][0]["latency"]["count"] == 1
    assert isinstance((await ask("status", tree=True))["tasks"], list)
    monkeypatch.setattr(sys, "argv", [])
    ask.host.bridge = None
    again = await ask("status")
    assert (again["program"], again["bridge"]) == ("", None)


async def test_a_store_that_does_not_say_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_COUNT", 0.01)
    ask = Asked()
    for answer in (None, sp.SnakepitError("gone")):
        ask.host.sessions.answer = answer
        assert (await ask("status"))["sessions"] is None


async def test_who_it_is() -> None:
    found = await Asked()("ping")
    assert (found["run_id"], found["pid"]) == ("r", os.getpid()) and abs(found["time"] - time.time()) < 60
    assert await Asked()("flight") == {"format": 1}


async def test_what_is_done_to_a_worker() -> None:
    ask = Asked()
    assert (
        await ask("cordon", worker="w")
        == await ask("uncordon", worker="w")
        == await ask("kill", worker="w")
        == {"worker": "w"}
    )
    assert await ask("restart", worker="w") == {"worker": "w", "replaced": True}
    assert await ask("drain", worker="w") == await ask("drain", worker="w", timeout_seconds=86400.0) == {"worker": "w"}
    assert await ask("resize", size=4, pool="p") == {"pool": "p", "size": 4}
    assert ask.host.made.done == [
        ("cordon", "w", True), ("cordon", "w", False), ("kill", "w"), ("recycle", "w"), ("drain", "w"), ("drain", "w"), ("resize", 4),
    ]  # fmt: skip


async def test_what_is_refused() -> None:
    ask = Asked()
    for op in ("cordon", "uncordon", "kill", "restart", "drain"):
        assert await ask.refused(op, worker="x" * 200) == ("no_such_worker", f"there is no worker {'x' * 100!r}")
        assert (await ask.refused(op))[0] == "invalid_parameter"
    for seconds in (-0.001, 86400.1):
        assert (await ask.refused("drain", worker="w", timeout_seconds=seconds))[0] == "invalid_parameter"
    ask.host.made.drains = 60.0
    assert await ask.refused("drain", worker="w", timeout_seconds=0.01) == (
        "timeout", "the worker still held calls after 0.01 s; it gets no new ones",
    )  # fmt: skip
    assert await ask.refused("resize", size=-1, pool="p") == ("invalid_parameter", "size: ***")
    assert (await ask.refused("resize", size=1))[0] == "pool_not_found"
    code, message = await ask.refused("x" * 200)
    assert (
        code == "unknown_operation"
        and f"no operation {'x' * 100!r}; there are cordon, drain, events, flight, kill" in message
    )
    assert (await ask.refused("ping", more=1))[0] == "invalid_parameter"
