"""``snakepit mcp`` as an agent host sees it: the official client, over standard input and output and over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

pytest.importorskip("mcp", reason="the extra mcp is not installed")
httpx2 = pytest.importorskip("httpx2")

from mcp import Client, StdioServerParameters  # noqa: E402
from mcp.client.streamable_http import streamable_http_client  # noqa: E402
from mcp.shared.exceptions import MCPError  # noqa: E402

pytestmark = pytest.mark.anyio
ADAPTER = "tests.adapters.agent"
TOKEN = "correct-horse"
COMMAND = [sys.executable, "-m", "snakepit_trio", "mcp", ADAPTER, "--size", "1"]


def environment() -> dict[str, str]:
    return {**os.environ, "SNAKEPIT_MCP_TOKEN": TOKEN}


@pytest.fixture
def served() -> Iterator[str]:
    """A server over HTTP; gives its URL."""
    with subprocess.Popen(
        [*COMMAND, "--http", "127.0.0.1:0"], env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                found = re.search(r"http://\S+", line)
                if found:
                    break
            else:
                pytest.fail("it did not start")
            yield found[0]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
            said = process.stderr.read()
            assert TOKEN not in said and "Traceback" not in said
        finally:
            process.kill()


@asynccontextmanager
async def over_http(url: str) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}, timeout=30) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            yield client


@asynccontextmanager
async def over_stdio(*options: str) -> AsyncIterator[Client]:
    parameters = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], *options], env=environment())
    async with Client(parameters) as client:
        yield client


async def all_of_it(client: Client, tmp_path: Path) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert tools["add"].description == "Sums two numbers."
    assert set(tools["add"].input_schema["properties"]) == {"a", "b"}
    assert tools["add"].output_schema["properties"]["result"]["type"] == "integer"
    assert tools["count"].output_schema["properties"]["result"]["items"]["type"] == "integer"
    assert "ctx" not in tools["wait"].input_schema.get("properties", {})

    added = await client.call_tool("add", {"a": 1, "b": 2})
    assert not added.is_error and added.structured_content == {"result": 3} and added.content[0].text == "3"
    found = await client.call_tool("point", {"x": 1, "y": 2})
    assert json.loads(found.content[0].text) == {"x": 1, "y": 2}
    described = await client.call_tool("describe", {"name": "n"})
    assert described.structured_content == {"name": "n"}

    seen: list[tuple[float, str | None]] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append((done, message))

    counted = await client.call_tool("count", {"n": 3}, progress_callback=progress)
    assert counted.structured_content == {"result": [0, 1, 2]}
    with anyio.fail_after(60):
        while len(seen) < 3:
            await anyio.sleep(0.01)
    assert sorted(seen) == [(1, "0"), (2, "1"), (3, "2")]

    failed = await client.call_tool("fail", {"message": "no such row"})
    assert failed.is_error and failed.content[0].text == "ValueError: no such row"
    refused = await client.call_tool("add", {"a": "one", "b": 2})
    assert refused.is_error and 'params["a"]' in refused.content[0].text
    flooded = await client.call_tool("flood", {})
    assert flooded.is_error and "more than" in flooded.content[0].text
    with pytest.raises(MCPError, match="no tool 'nothing'"):
        await client.call_tool("nothing", {})

    # A worker that dies takes its call with it, and nothing else.
    died = await client.call_tool("die", {})
    assert died.is_error and "worker_crashed" in died.content[0].text
    assert (await client.call_tool("add", {"a": 2, "b": 2})).structured_content == {"result": 4}

    # What the client cancels is cancelled in the worker.
    path = tmp_path / "state"
    with anyio.fail_after(60):
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(client.call_tool, "wait", {"path": str(path)})
            while not path.exists() or path.read_text() != "begun":
                await anyio.sleep(0.01)
            nursery.cancel_scope.cancel()
        while path.read_text() != "cancelled":
            await anyio.sleep(0.01)
    assert (await client.call_tool("add", {"a": 2, "b": 3})).structured_content == {"result": 5}


async def test_over_stdio(tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with over_stdio() as client:
            await all_of_it(client, tmp_path)


# The client leaves its readers to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*was garbage collected:ResourceWarning")
async def test_over_http(served: str, tmp_path: Path) -> None:
    with anyio.fail_after(60):
        async with over_http(served) as client:
            await all_of_it(client, tmp_path)


async def test_only_some_tools() -> None:
    with anyio.fail_after(60):
        async with over_stdio("--tools", "add,count") as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == {"add", "count"}
            with pytest.raises(MCPError, match="no tool 'die'"):
                await client.call_tool("die", {})


def test_who_may_call(served: str) -> None:
    port = served.split(":")[2].split("/")[0]
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).encode()
    given = {"content-type": "application/json", "accept": "application/json, text/event-stream"}

    def status(**headers: str) -> int:
        all_headers = {**given, **{name.replace("_", "-"): value for name, value in headers.items()}}
        request = urllib.request.Request(served, body, all_headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    allowed = {"authorization": f"Bearer {TOKEN}"}
    assert status() == 401
    assert status(authorization="Bearer wrong") == 401
    assert status(**allowed, host=f"evil.example:{port}") == 421
    assert status(**allowed, origin="http://evil.example") == 403
    assert status(**allowed, origin=f"http://localhost:{port}") not in (401, 403, 421)


def test_stdout_carries_nothing_else() -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}}  # fmt: skip
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1, "b": 1}}}
    said = [request, {"jsonrpc": "2.0", "method": "notifications/initialized"}, call]
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        try:
            for message in said:
                process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["id"] == 1
            assert json.loads(process.stdout.readline())["result"]["structuredContent"] == {"result": 2}
            # The end of its input is its end.
            process.stdin.close()
            assert process.wait(20) == 0
            assert process.stdout.read() == ""
            assert "adding" in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tools", "ad"], "did you mean 'add'"),
        (["--http", "0.0.0.0:0"], "loopback"),
        (["--http", "here"], "HOST:PORT"),
        (["--token-file", "/nowhere", "--http", "127.0.0.1:0"], "/nowhere"),
    ],
)
def test_what_is_refused(options: list[str], words: str) -> None:
    done = subprocess.run(
        [*COMMAND, *options], env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert words in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ctrl_c_while_it_imports_ends_it_at_once(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("import sys, time\nprint(file=sys.stderr, flush=True)\ntime.sleep(600)\n")
    found = environment()
    found["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{found.get('PYTHONPATH', '')}"
    with subprocess.Popen(
        [*COMMAND, "--http", "127.0.0.1:0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=found,
    ) as process:
        try:
            assert process.stderr is not None
            while (line := process.stderr.readline()) != b"\n":
                assert line
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()


def test_a_signal_ends_it_in_order() -> None:
    with subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}) + "\n")
            process.stdin.flush()
            assert process.stdout.readline()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
