"""Values that JSON does not have, through real workers and the bridge: exactly, and by annotation."""

from __future__ import annotations

import datetime as dt
import fractions
import ipaddress
import json
import pathlib
import re
import zoneinfo
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pandas as pd
import pytest

import snakepit_trio as sp
from tests.adapters.valued import Unit
from tests.integration.test_cli import snakepit

VALUED = "tests.adapters.valued"
VALUES: list[Any] = [
    pathlib.Path("/a/b"), pathlib.PureWindowsPath("c:/x"), fractions.Fraction(-1, 3), ipaddress.ip_address("::1"),
    ipaddress.ip_network("10.0.0.0/8"), re.compile("a+", re.IGNORECASE), zoneinfo.ZoneInfo("Asia/Kolkata"), dt.UTC,
    pd.Timestamp("2024-10-27 01:30", tz="UTC").tz_convert("Europe/Paris"), pd.Timedelta("1ns"),
    np.datetime64("2024-01-01"), np.timedelta64(3, "us"),
]  # fmt: skip


def check(found: Any) -> None:
    assert [type(value) for value in found] == [type(value) for value in VALUES]
    assert found == VALUES


@pytest.mark.anyio
@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
@pytest.mark.parametrize("worker_backend", ["trio", "asyncio"])
async def test_there_and_back(start_method: Any, worker_backend: Any, tmp_path: Path) -> None:
    pools = [sp.PoolConfig(adapter=VALUED, size=1, start_method=start_method, worker_backend=worker_backend)]
    (tmp_path / "f").write_text("two words")
    with anyio.fail_after(60):
        async with sp.open_runtime(sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig())) as runtime:
            assert runtime.bridge is not None
            async with sp.connect(runtime.bridge.address, token=runtime.bridge.token) as client:
                source: Any
                for source in (runtime.pool(), client):
                    for tool in ("echo", "echo_async"):
                        check(await source.execute(tool, {"value": VALUES}))
                    async with source.stream("echoes", {"values": VALUES}) as chunks:
                        check([chunk async for chunk in chunks])
                    async with source.map("echo", [{"value": value} for value in VALUES]) as results:
                        check([result async for result in results])
                    async with source.session("s") as session:
                        await session.put("values", VALUES)
                        check(await session.get("values"))
                    for path in (tmp_path / "f", str(tmp_path / "f")):
                        assert await source.execute("size", {"path": path}) == 9
                        for unit in (Unit.WORDS, "words"):
                            assert await source.execute("size", {"path": path, "unit": unit}) == 2
                    params = {"address": "10.1.1.1", "network": ipaddress.ip_network("10.0.0.0/8")}
                    assert await source.execute("within", params) is True
                    async with source.stream("matches", {"pattern": r"\d", "text": "a1b2"}) as chunks:
                        assert [chunk async for chunk in chunks] == ["1", "2"]


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("two words")
    called = snakepit("call", VALUED, "size", json.dumps({"path": str(tmp_path / "f"), "unit": "words"}))
    assert (called.returncode, called.stdout) == (0, "2\n"), called.stderr
    mapped = snakepit("map", VALUED, "size", str(tmp_path), "--size", "1", "--param", "path={path}")
    assert json.loads(mapped.stdout)["result"] == 9, mapped.stderr
    listed = snakepit("tools", VALUED).stdout
    assert "path: string" in listed and "pattern: string" in listed
