"""Whoever prints an error of a tool sees where in the tool it was raised, whichever way the call went."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio import errors
from tests.integration.test_testing import run as run_tests

ROOT = Path(__file__).resolve().parents[2]
NESTED = "tests.adapters.nested"
FRAME = 'nested.py", line '
LINE = "raise ValueError(message)"


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


async def raised(call: Callable[[], Awaitable[Any]]) -> sp.SnakepitError:
    with pytest.raises(sp.ToolError) as caught:
        await call()
    return caught.value


def check(error: BaseException, line: str = LINE, times: int = 1) -> None:
    text = shown(error)
    assert text.count(line) == times, text
    assert FRAME in text
    # Nothing of the machinery in between: neither a lost RPC nor what has looked at the error first.
    assert "During handling" not in text, text


@pytest.mark.anyio
@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
@pytest.mark.parametrize("worker_backend", ["trio", "asyncio"])
async def test_on_every_way(start_method: Any, worker_backend: Any) -> None:
    pools = [sp.PoolConfig(adapter=NESTED, size=1, start_method=start_method, worker_backend=worker_backend)]
    config = sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig())

    async def refuse(message: str) -> None:
        raise ValueError(message)

    with anyio.fail_after(60):
        async with sp.open_runtime(config) as runtime:
            assert runtime.bridge is not None
            runtime.tools.register("refuse", refuse)
            async with sp.connect(runtime.bridge.address, token=runtime.bridge.token) as client:
                source: Any
                for source in (runtime.pool(), client):
                    # What no tool has raised shows nothing of how the answer came.
                    with pytest.raises(sp.ToolNotFound) as caught:
                        await source.execute("nothing")
                    assert "During handling" not in shown(caught.value) and caught.value.__cause__ is None
                    check(await raised(lambda s=source: s.execute("fail", {"message": "m"})))  # type: ignore[misc]
                    async with source.session("s") as session:
                        check(await raised(lambda s=session: s.execute("fail", {"message": "m"})))  # type: ignore[misc]
                    async with source.map("fail", [{"message": "m"}] * 2, return_errors=True) as results:
                        found = [error async for error in results]
                    assert len(found) == 2
                    for error in found:
                        check(error)

                    async def over_a_map(source: Any = source) -> None:
                        async with source.map("fail", [{"message": "m"}]) as results:
                            await anext(results)

                    check(await raised(over_a_map))

                    async def over_a_stream(source: Any = source) -> None:
                        params = {"name": "refuse", "n": 1}
                        async with source.stream("asked_stream", params) as chunks:
                            await anext(chunks)

                    check(await raised(over_a_stream), "ctx.call_host_sync(name, {", 1)
                    # Raised in the host, passed on by the tool: each frame once.
                    for tool in ("ask", "ask_sync"):
                        params = {"name": "refuse", "params": {"message": "m"}}
                        error = await raised(lambda s=source, t=tool, p=params: s.execute(t, p))  # type: ignore[misc]
                        check(error)
                        check(
                            error, "return ctx.call_host_sync(" if tool == "ask_sync" else "return await ctx.call_host("
                        )


def test_what_is_printed_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    error = errors.tool_error(("builtins.KeyError",), "k", "Traceback (most recent call last):\n  here\nKeyError: k\n")
    assert isinstance(error.__cause__, errors.RemoteTraceback)
    copies = [copy.copy(error), pickle.loads(pickle.dumps(error))]
    for one in (error, *copies):
        text = shown(one)
        assert text.index("  here") < text.index("direct cause") < text.index("ToolError: KeyError: k")
    wrapped = RuntimeError("mine")
    try:
        raise wrapped from error
    except RuntimeError:
        logging.getLogger("app").exception("failed")
    assert "  here" in caplog.text and "  here" in shown(ExceptionGroup("g", [error]))
    assert errors.tool_error((), "k", "").__cause__ is None


@pytest.mark.anyio
async def test_what_an_adapter_raises_while_it_starts() -> None:
    with pytest.raises(sp.WorkerStartupError) as caught:
        async with sp.open_pool("tests.adapters.broken_setup", size=1):
            pass
    assert "broken_setup.py" in shown(caught.value)


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=place, capture_output=True, text=True, timeout=90, check=False,
        env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}"},
    )  # fmt: skip


def test_in_commands_and_in_a_test_run(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "snakepit_trio", "call", NESTED, "fail", '{"message": "m"}')
    assert done.returncode == 1 and LINE in done.stderr
    done = run(tmp_path, "-m", "snakepit_trio", "call", "--json", NESTED, "fail", '{"message": "m"}')
    assert LINE in json.loads(done.stdout)["error"]["traceback"]
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.anyio\n"
        f"@pytest.mark.snakepit_pool({NESTED!r})\n"
        "async def test_it(snakepit_pool):\n    await snakepit_pool.execute('fail', {'message': 'm'})\n"
    )
    done = run_tests(tmp_path, "-k", "asyncio")
    assert done.returncode == 1 and LINE in done.stdout, done.stdout


def test_in_lines_of_a_map(tmp_path: Path) -> None:
    (tmp_path / "in.txt").touch()
    done = run(
        tmp_path, "-m", "snakepit_trio", "map", "--size", "1", "--param", "message={name}", NESTED, "fail", "in.txt"
    )
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "ValueError" and LINE in error["traceback"]
