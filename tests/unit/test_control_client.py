"""What the commands make of a runtime's answers, or of none."""

from __future__ import annotations

import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

import snakepit_trio as sp
from snakepit_trio import _platform
from snakepit_trio.control import client as module
from snakepit_trio.control.client import ControlClient, ControlError, connect
from snakepit_trio.control.server import _is_ours

pytestmark = pytest.mark.anyio


class Peer(anyio.abc.ByteStream):
    """Says what it is told to, then has closed."""

    def __init__(self, *said: bytes) -> None:
        self.said = list(said)
        self.heard: list[dict[str, Any]] = []

    async def send(self, item: bytes) -> None:
        self.heard.append(json.loads(item))

    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.lowlevel.checkpoint()
        if not self.said:
            raise anyio.EndOfStream
        return self.said.pop(0)

    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ([], "unreachable", "closed the connection"),
        ([b'{"ok": true'], "unreachable", "closed the connection"),
        ([b"no json\n"], "unreachable", "can't be read"),
        ([b"[1]\n"], "unreachable", "can't be read"),
        ([line(ok=True, id=2, result={})], "unreachable", "none to our question"),
        ([line(ok=1, id=1, result={})], "unreachable", "none to our question"),
        ([line(ok=False, id=1, error="text")], "unreachable", "none to our question"),
        ([line(ok=False, id=1, error={"code": "refused", "message": "no"})], "refused", "no"),
        ([line(ok=False, id=1, error={})], "control", "^$"),
    ],
)
async def test_what_is_no_answer(said: list[bytes], code: str, words: str) -> None:
    with pytest.raises(ControlError, match=words) as raised:
        await ControlClient(Peer(*said)).ask("status")
    assert raised.value.code == code and raised.value.retryable is (code == "unreachable")


async def test_an_answer_in_pieces_and_the_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = line(ok=True, id=1, result={"a": 1}), line(ok=True, id=2, result={"b": 2})
    peer = Peer(one[:5], one[5:] + two)
    client = ControlClient(peer)
    assert await client.ask("status", window=2.0) == {"a": 1}
    assert await client.ask("kill", worker="w") == {"b": 2}
    assert [(said["id"], said["op"], said["params"]) for said in peer.heard] == [
        (1, "status", {"window": 2.0}),
        (2, "kill", {"worker": "w"}),
    ]
    monkeypatch.setattr(module, "ANSWER_LIMIT", 100)
    with pytest.raises(ControlError, match="too long"):
        await ControlClient(Peer(*itertools.repeat(b"x" * 60, 4))).ask("status")


async def test_events_until_it_ends() -> None:
    peer = Peer(
        line(ok=True, id=1, result={}), line(event={"name": "a"}, dropped=0), line(event={"name": "b"}, dropped=2)
    )
    found = [one async for one in ControlClient(peer).events("worker.")]
    assert [(one["event"]["name"], one["dropped"]) for one in found] == [("a", 0), ("b", 2)]
    assert peer.heard[0]["params"] == {"prefixes": ["worker."]}


async def test_events_that_fail_in_the_middle() -> None:
    said = line(ok=False, id=1, error={"code": "internal", "message": "it has failed"})
    events = ControlClient(Peer(line(ok=True, id=1, result={}), line(event={"name": "a"}, dropped=0), said)).events()
    assert (await anext(events))["event"]["name"] == "a"
    with pytest.raises(ControlError, match="it has failed") as raised:
        await anext(events)
    assert raised.value.code == "internal"
    events = ControlClient(Peer(line(ok=True, id=1, result={}), line(ok=True, id=1, result={}))).events()
    with pytest.raises(ControlError, match="none to our question"):
        await anext(events)


@pytest.mark.parametrize("name", ["_send", "_line", "_result"])
async def test_what_nobody_expected_is_an_internal_error(
    name: str, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError(name)

    monkeypatch.setattr(module if name == "_result" else ControlClient, name, fail)
    client = ControlClient(Peer(line(ok=True, id=1, result={}), line(ok=True, id=2, result={})))
    for ask in (lambda: client.ask("status"), lambda: anext(client.events())):
        with pytest.raises(sp.SnakepitError) as raised:
            await ask()
        assert raised.value.code == "internal"
    assert [str(error) for error in internal_errors] == [name, name]


async def test_a_client_that_can_not_be_made_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    class Stream(Peer):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    async def connected(path: str) -> Stream:
        return stream

    def fail(*args: Any) -> None:
        raise RuntimeError("made")

    stream = Stream()
    monkeypatch.setattr(anyio, "connect_unix", connected)
    monkeypatch.setattr(ControlClient, "__init__", fail)
    with pytest.raises(sp.SnakepitError) as raised:
        async with connect("/somewhere"):
            pytest.fail("made")
    assert raised.value.code == "internal" and stream.closed
    assert [str(error) for error in internal_errors] == ["made"]


async def test_where_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"can't be reached: .*No such file") as raised:
        async with connect(str(tmp_path / "nothing")):
            pytest.fail("connected")
    assert raised.value.code == "unreachable"


async def test_who_does_not_take_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(path: str) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(anyio, "connect_unix", never)
    with pytest.raises(ControlError, match=r"can't be reached: no connection within 0.01 s"):
        async with connect("/somewhere", timeout=0.01):
            pytest.fail("connected")


async def test_who_is_at_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(_platform, "peer_of", lambda sock: _platform.Peer(None, os.geteuid(), 0))
        assert _is_ours(ours)
        monkeypatch.setattr(_platform, "peer_of", lambda sock: _platform.Peer(7, os.geteuid() + 1, 0))
        assert not _is_ours(ours)


@pytest.mark.parametrize(("mode", "ours"), [(0o700, True), (0o701, False), (0o770, False)])
async def test_where_the_system_does_not_tell_the_directory_must_be_private(
    mode: int, ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_platform, "peer_of", lambda sock: None)
    path = tmp_path / "run" / "control.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen(1)
        client.connect(str(path))
        accepted, _ = listener.accept()
        with accepted:
            path.parent.chmod(mode)
            assert _is_ours(accepted) is ours
            monkeypatch.setattr(os, "geteuid", lambda: 4321)
            assert not _is_ours(accepted)
