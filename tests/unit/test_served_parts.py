"""Parts of what serves others, without a client: pages of metrics, schemas for agents, reflection, sockets, records of stores."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio import _platform
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.bridge.listening import listen, peer_of, turn_away
from snakepit_trio.bridge.reflection import Descriptors, ReflectionService, load_descriptors
from snakepit_trio.config import BridgeConfig
from snakepit_trio.errors import ConfigError, InvalidParameter, SnakepitError
from snakepit_trio.sessions.records import Limits, OddRows, check_name, check_ttl, new_generation, over_quota
from snakepit_trio.sessions.store import Store, open_store
from snakepit_trio.wire.generated.grpc.reflection import v1

# ---- metrics -------------------------------------------------------------------------------------------


class Collector:
    """Collects nothing."""

    def collect(self) -> Any:
        return iter(())

    def describe(self) -> Any:
        return ()


def page(method: bytes, target: bytes, pools: dict[str, tuple[int, int]] | None = None) -> tuple[int, str, bytes]:
    http = pytest.importorskip("snakepit_trio.observe.http")
    metrics = http.Metrics(sp.MetricsConfig(), Collector(), lambda: pools or {}, InternalErrors())
    return cast(
        "Any", metrics._page(SimpleNamespace(method=method, target=target, headers=[(b"accept", b"text/plain")]))
    )


def test_pages_of_metrics() -> None:
    for method in (b"GET", b"HEAD"):
        assert page(method, b"/live") == (200, "text/plain; charset=utf-8", b"live\n")
        assert page(method, b"/live?x=1")[0] == 200 and page(method, b"/metrics")[0] == 200
        assert page(method, b"/other")[0] == page(method, b"/")[0] == page(method, b"/live/")[0] == 404
    assert page(b"POST", b"/live")[0] == page(b"DELETE", b"/metrics")[0] == 405


@pytest.mark.parametrize(
    ("pools", "ready"),
    [
        ({}, False),
        ({"a": (1, 2)}, True),
        ({"a": (0, 2)}, False),
        ({"a": (1, 1), "b": (0, 1)}, False),
        # One that is meant to have none is as it should be.
        ({"a": (0, 0)}, True),
        ({"a": (0, 0), "b": (2, 2)}, True),
    ],
)
def test_whether_all_pools_serve(pools: dict[str, tuple[int, int]], ready: bool) -> None:
    status, kind, body = page(b"GET", b"/ready", pools)
    assert (status, kind) == (200 if ready else 503, "application/json")
    assert json.loads(body) == {
        "ready": ready, "pools": {name: {"ready": of[0], "size": of[1]} for name, of in pools.items()},
    }  # fmt: skip


def test_one_that_waits_makes_room_the_oldest_first() -> None:
    http = pytest.importorskip("snakepit_trio.observe.http")
    metrics = http.Metrics(sp.MetricsConfig(), Collector(), dict, InternalErrors())
    assert metrics._make_room() is False
    cancelled: list[int] = []
    for number in range(2):
        metrics._waiting[number] = SimpleNamespace(cancel=lambda number=number: cancelled.append(number))
    assert metrics._make_room() and cancelled == [0] and list(metrics._waiting) == [1]


# ---- MCP -----------------------------------------------------------------------------------------------


def test_schemas_for_agents() -> None:
    mcp = pytest.importorskip("snakepit_trio.bridge.mcp")

    def spec(result: Any, *, streaming: bool = False, idempotent: bool = False, description: str = "") -> Any:
        return SimpleNamespace(
            name="t", description=description, streaming=streaming, idempotent=idempotent, result_schema=result,
            parameters_schema='{"properties": {"a": {}}}',
        )  # fmt: skip

    object_ = '{"type": "object", "$defs": {"D": {}}}'
    assert mcp._output_schema(spec(object_)) == {"type": "object", "$defs": {"D": {}}}
    number = '{"type": "integer", "$defs": {"D": {}}}'
    assert mcp._output_schema(spec(number)) == {
        "type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"], "$defs": {"D": {}},
    }  # fmt: skip
    for schema in (number, object_):
        made = mcp._output_schema(spec(schema, streaming=True))
        assert made["properties"]["result"]["type"] == "array" and made["$defs"] == {"D": {}}
        assert made["properties"]["result"]["items"] == {"type": json.loads(schema)["type"]}
    for nothing in ("", "true", "null"):
        assert mcp._output_schema(spec(nothing)) == {
            "type": "object", "properties": {"result": {}}, "required": ["result"],
        }  # fmt: skip
    tool = mcp._describe(spec("", idempotent=True, description="d"))
    assert (tool.name, tool.description, tool.input_schema) == ("t", "d", {"type": "object", "properties": {"a": {}}})
    assert tool.annotations.idempotent_hint is True
    tool = mcp._describe(spec(""))
    assert tool.description is None and tool.annotations is None


def test_what_an_agent_is_told() -> None:
    mcp = pytest.importorskip("snakepit_trio.bridge.mcp")
    assert mcp._explain(sp.ToolError("it failed")) == "it failed"
    assert mcp._explain(sp.QueueFull("full")) == "queue_full: full"
    assert len(mcp._explain(sp.ToolError("x" * 10_000))) <= 8 * 1024
    assert mcp._as_json({"a": (1, 2)}) == {"a": [1, 2]} and mcp._text("\u00e9") == '"\u00e9"'
    for number in (math.nan, math.inf):
        with pytest.raises(sp.InvalidPayload, match="JSON has no number") as refused:
            mcp._as_json([number])
        assert refused.value.details == {"path": "result"}


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "10.0.0.1:1", ":1", "127.0.0.1:\u0661"]
)
def test_where_agents_are_not_served(address: str) -> None:
    mcp_http = pytest.importorskip("snakepit_trio.bridge.mcp_http")
    with pytest.raises(ConfigError, match="HOST:PORT") as refused:
        mcp_http.listen(address)
    assert refused.value.details["key"] == "http"


def test_where_agents_are_served() -> None:
    mcp_http = pytest.importorskip("snakepit_trio.bridge.mcp_http")
    with mcp_http.listen("127.0.0.1:0") as sock:
        assert sock.family == socket.AF_INET and sock.getsockname()[1] > 0
        with pytest.raises(ConfigError, match="can't listen"):
            mcp_http.listen(f"127.0.0.1:{sock.getsockname()[1]}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ([(b"authorization", b"Bearer t")], True),
        ([(b"x", b"y"), (b"authorization", b"Bearer t")], True),
        ([(b"authorization", b"Bearer u")], False),
        ([(b"x", b"Bearer t")], False),
        ([(b"authorization", b"bearer t")], False),
        ([(b"authorization", b"Bearer t"), (b"authorization", b"Bearer t")], False),
        ([], False),
    ],
)
async def test_nobody_without_the_token(headers: list[tuple[bytes, bytes]], let_in: bool) -> None:
    mcp_http = pytest.importorskip("snakepit_trio.bridge.mcp_http")
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append("in")

    async def send(message: Any) -> None:
        told.append(message.get("status", message["type"]))

    guarded = mcp_http._Guarded(app, "t")
    await guarded({"type": "http", "headers": headers}, None, send)
    assert told == (["in"] if let_in else [401, "http.response.body"])
    await guarded({"type": "lifespan"}, None, send)
    assert told[-1] == "in"


# ---- reflection ----------------------------------------------------------------------------------------


def test_a_file_comes_with_what_it_imports_once() -> None:
    known = Descriptors(
        {name: name.encode() for name in "abcd"}, {"a": ("b", "c"), "b": ("c",), "c": (), "d": ()}, {}, ()
    )
    assert known.with_imports("a")[0] == b"a" and sorted(known.with_imports("a")) == [b"a", b"b", b"c"]
    assert known.with_imports("d") == [b"d"]


def test_what_is_told_of_the_files() -> None:
    service, known = ReflectionService(), load_descriptors()

    def answer(**asked: Any) -> Any:
        return service._answer(v1, v1.ServerReflectionRequest(**asked))

    names = [one.name for one in answer(list_services="").list_services_response.service]
    assert names == sorted(names) and "snakepit.v1.WorkerService" not in names and "grpc.health.v1.Health" in names
    for symbol in ("grpc.health.v1.Health", "grpc.health.v1.Health.Check", "grpc.health.v1.HealthCheckRequest.service",
                   ".grpc.health.v1.HealthCheckResponse.ServingStatus"):  # fmt: skip
        found = answer(file_containing_symbol=symbol).file_descriptor_response.file_descriptor_proto
        assert found[0] == known.files[known.symbols[symbol.lstrip(".")]]
    (name, *_) = known.files
    assert answer(file_by_filename=name).file_descriptor_response.file_descriptor_proto[0] == known.files[name]
    assert answer(file_by_filename="none").error_response.error_code == 5
    assert answer(file_containing_symbol="none").error_response.error_code == 5
    assert answer(all_extension_numbers_of_type="x").error_response.error_code == 12
    assert all(
        method.streams_in and method.streams_out and method.longest == 64 * 1024 and not method.public
        for method in service.methods.values()
    )
    assert len(service.methods) == 2


# ---- where a bridge listens ----------------------------------------------------------------------------


def test_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peer_of(one) == (_platform.peer_of(one) and (os.getpid(), os.geteuid(), os.getegid()))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted = server.accept()[0]
        with accepted:
            assert peer_of(accepted) == "127.0.0.1" == peer_of(client)
    assert peer_of(one) is None


@pytest.mark.parametrize("secured", [False, True])
def test_who_is_turned_away_is_told_why_where_that_can_be_read(secured: bool) -> None:
    one, other = socket.socketpair()
    with other:
        other.send(b"PRI")
        turn_away(one, "too many", secured=secured)
        assert one.fileno() == -1
        said = b"".join(iter(lambda: other.recv(1000), b"")) if not secured else b""
    if not secured:
        # An empty SETTINGS frame, and GOAWAY: no stream was taken, ENHANCE_YOUR_CALM.
        assert (
            said
            == bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
            + bytes((0, 0, 16, 7, 0, 0, 0, 0, 0))
            + bytes((0, 0, 0, 0, 0, 0, 0, 11))
            + b"too many"
        )


def test_a_path_that_is_free_or_is_made_free(tmp_path: Path) -> None:
    path = tmp_path / "s"
    config = BridgeConfig(address=f"unix:{path}")
    with listen(config, "/unused", lambda: None) as (_, address):
        assert address == f"unix:{path}" and path.is_socket()
        with pytest.raises(ConfigError, match="another process listens"), listen(config, "/unused", lambda: None):
            pytest.fail("taken")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listen(config, "/unused", lambda: None):
        pass
    path.write_text("mine")
    with pytest.raises(ConfigError, match="is no socket"), listen(config, "/unused", lambda: None):
        pytest.fail("taken")
    assert path.read_text() == "mine"
    default = str(tmp_path / "default")
    with listen(BridgeConfig(), default, lambda: None) as (_, address):
        assert address == f"unix:{default}"


def test_how_long_a_path_may_be(tmp_path: Path) -> None:
    longest = _platform.SOCKET_PATH_MAX
    place = f"{tmp_path}/{'d' * max(0, 90 - len(str(tmp_path)))}"
    os.mkdir(place)
    path = f"{place}/{'s' * (longest - len(place) - 1)}"
    assert len(path) == longest
    with listen(BridgeConfig(address=f"unix:{path}"), "", lambda: None):
        pass
    with pytest.raises(ConfigError, match=f"may have {longest} bytes"), listen(
        BridgeConfig(address=f"unix:{path}s"), "", lambda: None
    ):  # fmt: skip
        pytest.fail("too long")


@pytest.mark.parametrize(
    ("host", "plaintext", "opens"), [("127.0.0.1", False, True), ("0.0.0.0", False, False), ("0.0.0.0", True, True)]
)
def test_who_may_reach_a_bridge_without_tls(host: str, plaintext: bool, opens: bool) -> None:
    config = BridgeConfig(address=f"tcp:{host}:0", allow_plaintext=plaintext)
    if not opens:
        with pytest.raises(ConfigError, match="other machines"), listen(config, "", lambda: None):
            pytest.fail("open")
        return
    with listen(config, "", lambda: None) as (door, address):
        assert address == f"tcp:{host}:{door.sock.getsockname()[1]}" and not door.sock.getblocking()


# ---- records of stores ---------------------------------------------------------------------------------


def test_times_to_live() -> None:
    assert [check_ttl(value) for value in (None, 1, 0.5, 1e9 - 1, 1e9, math.inf)] == [
        None,
        1.0,
        0.5,
        1e9 - 1,
        None,
        None,
    ]
    for value in (0, -1, math.nan, True, False, "1", []):
        with pytest.raises(InvalidParameter, match="ttl must be") as refused:
            check_ttl(value)
        assert refused.value.details == {"path": "ttl"}


def test_names_of_sessions_keys_and_programs() -> None:
    for name in ("a", "a" * 256, "\u00e9" * 128, "a b"):
        assert check_name(name, "key") == name
    for wrong in ("", "a" * 257, "\u00e9" * 129, "a\n", "\ud800", 1, None, b"a"):
        with pytest.raises(InvalidParameter, match="key must be printable text of 1 to 256 bytes") as refused:
            check_name(wrong, "key")
        assert refused.value.details == {"path": "key"}
    first, second = new_generation(), new_generation()
    assert first != second and len(first) == len(second) == 16
    error = over_quota("q", 3, 2, 1)
    assert error.details == {"quota": "q", "limit": 3, "used": 2, "asked": 1} and not error.retryable


def test_odd_rows_are_told_of_once_and_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    odd = OddRows()
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b", "a", b"a", b"\xff", "x" * 300):
            odd.tell("session", name)
        odd.tell("value", "a", "k")
        assert odd.metadata("a", b'{"x": "y"}') == {"x": "y"}
        for broken in (b'{"x": 1}', b"[", None, "\ud800"):
            assert odd.metadata("m", broken) == {}
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert said == ["'a'", "'b'", "b'\\xff'", ("'" + "x" * 300)[:100], "'a' of 'k'", "'m'"]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        for number in range(1100):
            odd.tell("key", number)
    assert len(caplog.records) == 1000 - 6


@pytest.mark.anyio
async def test_a_store_is_asked_once_at_a_time_and_its_failures_are_told() -> None:
    class Failure(Exception):
        pass

    for blocking in (False, True):
        store = Store(
            cast("Any", None), clock=lambda: 1.0, blocking=blocking, shared=blocking, failures=(Failure,)
        )  # fmt: skip
        assert await store.ask(lambda a, *, b: (a, b), 1, b=2) == (1, 2)

        def fail(exc: Exception) -> None:
            raise exc

        with pytest.raises(SnakepitError, match=r"can't be used: gone") as failed:
            await store.ask(fail, Failure("gone"))
        assert failed.value.retryable
        with pytest.raises(LookupError):
            await store.ask(fail, LookupError())
        called: list[int] = []
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.ask(called.append, 1)
        assert scope.cancelled_caught and not called

        def one(running: list[int]) -> None:
            running.append(1)
            time.sleep(0.002)
            assert running.pop() and not running

        async with anyio.create_task_group() as nursery:
            for _ in range(4):
                nursery.start_soon(store.ask, one, called)


@pytest.mark.anyio
async def test_places_of_a_store(tmp_path: Path) -> None:
    async with open_store("memory", Limits()) as store:
        assert not store.shared and not store._blocking and store.clock is anyio.current_time
    async with open_store(f"sqlite:{tmp_path}/s", Limits()) as store:
        assert store.shared and store._blocking and abs(store.clock() - time.time()) < 60
    with pytest.raises(ConfigError, match="store: sqlite:") as refused:
        async with open_store(f"sqlite:{tmp_path}/none/s", Limits()):
            pytest.fail("open")
    assert refused.value.details["key"] == "store"
