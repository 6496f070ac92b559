"""Small conditions at the edges of rooms: addresses, ends of pipes, tasks that wait for each other, counts."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import socket
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio._tasks import is_under
from snakepit_trio.bridge import mcp_stdio
from snakepit_trio.launch.command import _is_local
from snakepit_trio.testing import ScriptedWorkers
from snakepit_trio.tools import waits
from snakepit_trio.tools.waits import CHAIN
from snakepit_trio.worker import importing, lifeline


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/tmp/s", True), ("tcp:127.0.0.1:80", True), ("tcp:[::1]:80", True), ("tcp:10.0.0.1:80", False),
        ("tcp:0.0.0.0:80", False), ("tcp:[::]:80", False), ("tcp:example.com:80", False), ("http://127.0.0.1", False), ("", False),
    ],
)  # fmt: skip
def test_where_a_command_may_listen(address: str, local: bool) -> None:
    assert _is_local(address) is local


@contextlib.contextmanager
def ends(*fds: int) -> Iterator[None]:
    try:
        yield
    finally:
        for fd in fds:
            os.close(fd)


def test_what_one_can_wait_for() -> None:
    read, write = os.pipe()
    one, other = socket.socketpair()
    leader, follower = pty.openpty()
    with ends(read, write, leader, follower), one, other, tempfile.TemporaryFile() as file, open(os.devnull) as nothing:
        assert [mcp_stdio._waits(fd) for fd in (read, write, one.fileno(), leader, follower)] == [True] * 5
        assert [mcp_stdio._waits(fd) for fd in (file.fileno(), nothing.fileno())] == [False] * 2


def test_a_pipe_whose_other_end_is_gone() -> None:
    read, write = os.pipe()
    with ends(read):
        with ends(write):
            for seconds in (0, 0.05):
                begun = time.monotonic()
                assert lifeline._hung_up(read, seconds) is False
                assert time.monotonic() - begun >= seconds - 0.005
            assert time.monotonic() - begun < 5
        begun = time.monotonic()
        assert lifeline._hung_up(read, None) is True and lifeline._hung_up(read, 60) is True
        assert time.monotonic() - begun < 5


def test_a_pool_in_the_setup_of_its_adapter() -> None:
    def config(*adapters: str | None) -> Any:
        return SimpleNamespace(pools=[SimpleNamespace(adapter=adapter) for adapter in adapters])

    importing.refuse_tower(config("mine"))
    with importing.being_set_up("mine"):
        importing.refuse_tower(config("other", None, "mine.below", "other:mine"))
        for adapter in ("mine", "mine:Class"):
            with pytest.raises(sp.ConfigError, match="the setup of the adapter 'mine' opens a pool"):
                importing.refuse_tower(config("other", adapter))
    importing.refuse_tower(config("mine"))


@pytest.mark.anyio
async def test_who_waits_for_whom() -> None:
    """A task waits for those in its nurseries, at any depth; nobody for one beside it."""
    outer = anyio.get_current_task().id
    found: dict[str, list[bool]] = {}
    ids: dict[str, int] = {}

    async def leaf() -> None:
        found["leaf"] = [
            is_under(outer),
            is_under(ids["middle"]),
            is_under(anyio.get_current_task().id),
            is_under(ids["beside"]),
        ]

    async def middle() -> None:
        ids["middle"] = anyio.get_current_task().id
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(leaf)

    async def beside(*, task_status: Any) -> None:
        ids["beside"] = anyio.get_current_task().id
        task_status.started()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as nursery:
        await nursery.start(beside)
        async with anyio.create_task_group() as inner:
            inner.start_soon(middle)
        nursery.cancel_scope.cancel()
    assert found == {"leaf": [True, True, True, False]}
    assert is_under(outer)


@pytest.mark.anyio
async def test_the_chain_of_a_host_tool_is_for_the_tasks_that_it_waits_for() -> None:
    outer = anyio.get_current_task().id
    first, last = (SimpleNamespace(over=False, task=outer) for _ in range(2))
    found: list[Any] = []

    async def look(over: bool, task: int | None) -> None:
        last.over, last.task = over, anyio.get_current_task().id if task is None else task
        found.append(waits.current_chain())

    token = CHAIN.set(cast("Any", (first, last)))
    try:
        # The last but one is in the task of none that is seen here; the last decides.
        for over, task in ((False, None), (False, outer), (True, None), (False, -1)):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(look, over, task)
    finally:
        CHAIN.reset(token)
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(look, False, None)
    assert found == [(first, last), (first, last), (), (), ()]


@pytest.mark.anyio
async def test_scripted_workers_have_nothing_of_a_real_run(caplog: pytest.LogCaptureFixture) -> None:
    """No process and no socket, one worker unless more are asked for, and counts that begin at nothing."""
    begun = anyio.Event()

    async def hang() -> None:
        begun.set()
        await anyio.sleep_forever()

    workers = ScriptedWorkers({"add": lambda a, b: a + b, "hang": hang})
    assert (workers.held, workers.recalls, repr(workers)) == (0, 0, "<ScriptedWorkers add, hang alive=0>")
    with caplog.at_level(logging.WARNING):
        async with workers.open_pool() as pool:
            assert [worker.state for worker in pool.workers()] == ["ready"] and len(workers.alive) == 1
            assert not pool.runtime.config.control
            for _ in range(3):
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert sorted(workers.starts.values()) == [1, 1, 1] and workers.held == 0
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.execute, "hang")
                await begun.wait()
                nursery.cancel_scope.cancel()
        assert not workers.alive
    assert not caplog.records


@pytest.mark.anyio
async def test_lines_that_come_together_or_in_pieces() -> None:
    reading, writing = os.pipe()
    try:
        lines = mcp_stdio.Lines(reading)
        for piece, found in ((b"a\nb\nc\nd", ["a", "b", "c"]), (b"\n", ["d"]), (b"\n\nrest", ["", ""])):
            os.write(writing, piece)
            with anyio.fail_after(10):
                assert [await anext(lines) for _ in found] == found
        os.close(writing)
        writing = -1
        assert [line async for line in lines] == ["rest"]
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
