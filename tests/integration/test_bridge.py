"""The bridge as stock gRPC clients see it: grpcio sync and aio, from the `.proto` compiled here."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from tests.clients.running import STOCK, bridged, call, environment, payload, raw, stock, value

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["sync", "aio"])
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
async def test_every_kind_of_call(kind: str, scheme: str, stubs: Path) -> None:
    options = {"address": None} if scheme == "unix" else {}
    async with bridged(**options) as runtime:
        ping, total, chunks, some, listed, one = await stock(
            kind, runtime, stubs,
            [
                ["Ping", {"message": "hello"}, {}],
                call("add", {"a": 1, "b": 2}),
                ["ExecuteStreamingTool", {"tool": "count", "payload": payload({"n": 300})}, {}],
                ["ExecuteStreamingTool", {"tool": "count", "payload": payload({"n": 100_000})}, {"take": 5}],
                ["ListTools", {}, {}],
                ["GetTool", {"tool": "add"}, {}],
            ],
        )  # fmt: skip
        assert ping["message"] == "hello"
        assert ping["pools"][0]["ready"] == 1
        assert value(total) == 3
        assert [value(chunk) for chunk in chunks] == list(range(300))
        assert [value(chunk) for chunk in some] == list(range(5))
        assert {tool["name"] for tool in listed["tools"]} >= {"add", "count"}
        assert one["tool"]["description"] == "Add two numbers."
        with anyio.fail_after(30):
            while runtime.pool().stats().in_flight:
                await anyio.sleep(0.01)


async def test_what_is_refused_and_how(stubs: Path) -> None:
    async with bridged() as runtime:
        found = await stock(
            "sync", runtime, stubs,
            [
                call("nothing"),
                call("add", {"a": 1, "b": 2}, pool="nowhere"),
                call("add", {"a": 1, "b": 2}, session_id="nobody"),
                call("add", {"a": 1, "b": "2"}),
                call("add", {"a": 1}),
                ["ExecuteTool", {"tool": "add", "payload": raw("ENCODING_JSON", b"{")}, {}],
                ["ExecuteTool", {"tool": "add", "payload": raw("ENCODING_MSGPACK", b"\xc1")}, {}],
                ["ExecuteTool", {"tool": "add", "payload": raw("ENCODING_UNSPECIFIED", b"{}")}, {}],
                call("count", {"n": 1}),
                ["ExecuteStreamingTool", {"tool": "add", "payload": payload({"a": 1, "b": 2})}, {}],
                call("fail", {"message": "with password=hunter2"}),
                call("sleep", {"seconds": 30}, options={"timeout": 0.3}),
                call("add", {"a": 1, "b": 2}, options={"token": "wrong"}),
                call("add", {"a": 1, "b": 2}, options={"token": ""}),
                ["GetSession", {"session_id": "nobody"}, {}],
                ["GetTool", {"tool": "nothing"}, {}],
                ["GetProgram", {"name": "nothing"}, {}],
            ],
        )  # fmt: skip
        codes = [item["code"] for item in found]
        assert codes == [
            "NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT",
            "INVALID_ARGUMENT", "INVALID_ARGUMENT", "UNIMPLEMENTED", "UNIMPLEMENTED", "UNKNOWN", "DEADLINE_EXCEEDED",
            "UNAUTHENTICATED", "UNAUTHENTICATED", "NOT_FOUND", "NOT_FOUND", "NOT_FOUND",
        ]  # fmt: skip
        assert "'nothing'" in found[0]["details"]
        assert "'nowhere'" in found[1]["details"]
        assert "'nobody'" in found[2]["details"]
        assert 'params["b"]' in found[3]["details"]
        assert found[3]["BadRequest"]["field_violations"][0]["field"] == 'params["b"]'
        assert 'params["b"]' in found[4]["details"]
        assert "payload" in found[5]["details"]
        assert "ExecuteStreamingTool" in found[8]["details"]
        assert "generator" in found[9]["details"]
        assert found[10]["ErrorInfo"]["reason"] == "TOOL_ERROR"
        assert found[10]["ErrorInfo"]["metadata"]["remote_type"] == "ValueError"
        assert "hunter2" not in json.dumps(found)
        assert runtime.bridge is not None
        assert runtime.bridge.token not in json.dumps(found)
        assert not any("bad_status" in item for item in found)


async def test_a_full_queue_says_when_to_come_again(stubs: Path) -> None:
    async with bridged(sp.PoolConfig(adapter="tests.adapters.basic", size=1, max_queue=0)) as runtime:
        pool = runtime.pool()
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(pool.execute, "sleep", {"seconds": 60})
            while not pool.stats().in_flight:
                await anyio.sleep(0.001)
            (full,) = await stock("sync", runtime, stubs, [call("add", {"a": 1, "b": 2})])
            nursery.cancel_scope.cancel()
        assert full["code"] == "RESOURCE_EXHAUSTED"
        assert full["RetryInfo"]["retry_delay"]
        assert full["ErrorInfo"]["reason"] == "QUEUE_FULL"


async def test_sessions_and_programs(stubs: Path) -> None:
    async with bridged(sp.PoolConfig(adapter="tests.adapters.basic", size=2)) as runtime:
        found = await stock(
            "aio", runtime, stubs,
            [
                ["OpenSession", {"session_id": "s", "affinity": "strict_queue", "ttl": 100, "metadata": {"k": "v"}}, {}],
                call("whoami", session_id="s"),
                call("whoami", session_id="s"),
                ["PutValue", {"session_id": "s", "key": "k", "payload": payload([1, 2])}, {}],
                ["GetValue", {"session_id": "s", "key": "k"}, {}],
                ["ListValues", {"session_id": "s"}, {}],
                ["Heartbeat", {"session_id": "s"}, {}],
                ["GetSession", {"session_id": "s"}, {}],
                ["PutProgram", {"name": "p", "data": base64.b64encode(b"code").decode()}, {}],
                ["GetProgram", {"name": "p"}, {}],
                ["ListPrograms", {}, {}],
                ["DeleteProgram", {"name": "p"}, {}],
                ["CloseSession", {"session_id": "s"}, {}],
                ["Heartbeat", {"session_id": "s"}, {}],
                ["OpenSession", {"affinity": "glue"}, {}],
            ],
        )  # fmt: skip
        assert found[0]["session"]["ttl"] == 100
        assert value(found[1])["pid"] == value(found[2])["pid"]
        assert value(found[1])["session_id"] == "s"
        assert found[3] == {"stored": True, "version": "1"}
        assert value(found[4]) == [1, 2]
        assert found[5]["keys"] == ["k"]
        assert found[7]["session"]["metadata"] == {"k": "v"}
        assert base64.b64decode(found[9]["data"]) == b"code"
        assert found[10]["programs"][0]["size"] == "4"
        assert found[11] == {"deleted": True}
        assert found[12] == {"closed": True}
        assert found[13]["code"] == "NOT_FOUND"
        assert found[14]["code"] == "INVALID_ARGUMENT"


async def test_the_standard_services(stubs: Path) -> None:
    async with anyio.create_task_group() as nursery:
        lines: list[Any] = []
        told = anyio.Event()

        async def look(address: str, env: dict[str, str]) -> None:
            program = [sys.executable, str(STOCK.parent / "standard.py"), address]
            async with await anyio.open_process(program, env=env, stderr=None) as process:
                assert process.stdout is not None
                rest = b""
                async for data in process.stdout:
                    *whole, rest = (rest + data).split(b"\n")
                    lines.extend(map(json.loads, whole))
                    told.set()
                told.set()

        async with bridged() as runtime:
            assert runtime.bridge is not None
            nursery.start_soon(look, runtime.bridge.address, environment(runtime, stubs))
            with anyio.fail_after(30):
                await told.wait()
    found, watched = lines
    assert found["health"] == {"": 1, "default": 1, "nothing": "NOT_FOUND"}
    assert found["watched"] == 1
    assert found["services"] == [
        "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
        "snakepit.v1.BridgeService",
    ]  # fmt: skip
    assert {"ExecuteTool", "ExecuteStreamingTool", "RegisterTools", "OpenSession", "PutProgram"} <= set(
        found["methods"]
    )
    # The host has said that it closes.
    assert watched[-1:] == [2]


async def test_the_example_client(stubs: Path, tmp_path: Path) -> None:
    async with bridged() as runtime:
        assert runtime.bridge is not None
        (tmp_path / "token").write_text(runtime.bridge.token)
        program = [sys.executable, str(ROOT / "examples" / "bridge_client.py"), runtime.bridge.address]
        done = await anyio.run_process(
            [*program, str(tmp_path / "token"), "add", '{"a": 1, "b": 2}'], env=environment(runtime, stubs), stderr=None
        )
        assert done.stdout.strip() == b"3"


async def test_a_client_in_node(node: Path) -> None:
    async with bridged() as runtime:
        assert runtime.bridge is not None
        program = ["node", str(STOCK.with_suffix(".js")), str(ROOT / "protos"), runtime.bridge.address]
        env = {**os.environ, "SNAKEPIT_TOKEN": runtime.bridge.token, "NODE_PATH": str(node)}
        found = json.loads((await anyio.run_process(program, env=env, stderr=None)).stdout)
        assert found["sum"] == 3
        assert found["missing"]["code"] == 5
        assert "'nothing'" in found["missing"]["details"]
        assert found["all"] == {"chunks": [0, 1, 2]}
        assert found["some"]["code"] == 1
        with anyio.fail_after(30):
            while runtime.pool().stats().in_flight:
                await anyio.sleep(0.005)
