"""The claims of docs/security.md that are not shown elsewhere: each test is one."""

from __future__ import annotations

import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.wire.connection import RpcFailure
from snakepit_trio.wire.frames import MSGPACK, FrameError, Payload, SharedBlock
from snakepit_trio.wire.memory import Budget, SharedMemory, make_file
from snakepit_trio.wire.transports import make_wire
from tests.elsewhere import open_pool_elsewhere

pytestmark = pytest.mark.anyio

ADAPTER = "tests.adapters.evil"
HEALTH = "/grpc.health.v1.Health/Check"
HANDSHAKE = "/snakepit.v1.WorkerService/Handshake"


async def call_worker(address: str, token: str, path: str, backend: str) -> RpcFailure | None:
    """One RPC to a worker's socket, as any local program could make it."""
    async with make_wire(backend) as wire:
        connection = await wire.connect(address, token=token, max_message=1 << 20)
        async with anyio.create_task_group() as nursery:
            nursery.start_soon(connection.serve)
            try:
                with anyio.fail_after(30):
                    await connection.unary(path, b"")
            except RpcFailure as exc:
                return exc
            finally:
                connection.close()
    return None


async def test_a_workers_socket_is_behind_a_private_directory_and_asks_for_the_token(anyio_backend_name: str) -> None:
    async with sp.open_pool(ADAPTER, size=1) as pool:
        [worker] = pool.workers()
        folder = Path(worker.address.removeprefix("unix:")).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for token in ("", "wrong", "0" * 43):
            for path in (HANDSHAKE, HEALTH):
                failure = await call_worker(worker.address, token, path, anyio_backend_name)
                assert failure is not None
                assert failure.status == 16, "UNAUTHENTICATED"
        assert await pool.execute("fine") == "fine"


@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
async def test_the_token_is_on_no_command_line_and_in_no_environment(start_method: str) -> None:
    async with sp.open_pool(ADAPTER, size=1, start_method=start_method) as pool:
        token = pool._services.token
        started = await pool.execute("what_i_was_started_with")
        [worker] = pool.workers()
        for text in [*started["command"], *started["environment"], *started["environ"]]:
            assert token not in text
        assert token not in Path(f"/proc/{worker.pid}/cmdline").read_text()
        assert token not in repr(pool.config) + repr(pool) + repr(pool.workers())


@pytest.mark.parametrize(
    "data",
    [b"garbage" * 100, b"\0" * 9, b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + b"\0" * 8, os.urandom(5000)],
    ids=["text", "an empty frame", "GOAWAY", "noise"],
)
async def test_a_worker_that_talks_nonsense_costs_itself_and_nothing_else(data: bytes) -> None:
    async with sp.open_pool(ADAPTER, size=2, restart_limit=1000, backoff_base=0) as pool:
        for _ in range(3):
            with anyio.fail_after(30):
                try:
                    await pool.execute("say_on_the_wire", {"data": data})
                except sp.SnakepitError:
                    pass
                assert await pool.execute("fine", idempotent=True) == "fine"
        await pool.wait_ready(timeout=30)
        stats = pool.stats()
        assert stats.accepted == stats.completed + stats.failed


async def test_a_result_that_is_too_large_or_too_deep_is_an_error_and_not_memory() -> None:
    async with sp.open_pool(ADAPTER, size=1, max_payload=1 << 20, shm_limit=0) as pool:
        [before] = pool.workers()
        for tool, params in (("large", {"size": 2 << 20}), ("nested", {"depth": 500})):
            with pytest.raises(sp.InvalidPayload):
                await pool.execute(tool, params)
        assert await pool.execute("fine") == "fine"
        assert pool.workers()[0].id == before.id


async def test_what_a_worker_prints_is_one_record_a_line_and_forges_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="snakepit_trio")
    text = "first\nCRITICAL root: forged\r\n\x1b[2J\x1b]0;title\x07 escape\n" + "x" * 300_000 + "\n"
    async with sp.open_pool(ADAPTER, size=1) as pool:
        await pool.execute("print_lines", {"text": text})
    records = [record for record in caplog.records if getattr(record, "stream", "") == "stdout"]
    assert len(records) >= 4
    for record in records:
        message = record.getMessage()
        assert record.name.startswith("snakepit_trio")
        assert record.levelno <= logging.INFO
        assert "\n" not in message
        assert "\r" not in message
        assert "\x1b" not in message
        assert len(message) < 100_000


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../b", "..", "a\0b", "a\nb", "x" * 300, "", " \x1b[2J", 7])
async def test_names_are_names_and_no_paths(name: object, tmp_path: Path) -> None:
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter=ADAPTER, size=1)],
        store=f"sqlite:{tmp_path}/store.db",
        state_dir=str(tmp_path / "s"),
    )
    async with sp.open_runtime(config) as runtime:
        before = {path for path in tmp_path.rglob("*") if "store.db" not in path.name}
        said = ""
        try:
            await runtime.programs.put(name, b"data")  # type: ignore[arg-type]
            async with runtime.pool("default").session(name) as session:  # type: ignore[arg-type]
                await session.put("key", 1)
        except sp.InvalidParameter as error:
            said = str(error)
        assert said.isprintable()
        assert len(said) < 500
        assert {path for path in tmp_path.rglob("*") if "store.db" not in path.name} == before


async def test_nobody_else_can_read_the_state(tmp_path: Path) -> None:
    state = tmp_path / "state"
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=ADAPTER, size=1)], state_dir=str(state))
    async with sp.open_runtime(config):
        for path in [state, *state.rglob("*")]:
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


async def test_a_connection_that_says_nothing_does_not_keep_a_worker_from_serving() -> None:
    async with sp.open_pool(ADAPTER, size=1) as pool:
        [worker] = pool.workers()
        idle = []
        for _ in range(20):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(worker.address.removeprefix("unix:"))
            sock.send(b"PRI * HTTP/2.0\r\n")
            idle.append(sock)
        try:
            assert await pool.execute("fine", timeout=10) == "fine"
        finally:
            for sock in idle:
                sock.close()


@pytest.mark.parametrize("name", ["", "i", "o", "x1", "o256", "o-1", "i01", "../o1", "/dev/shm/x", "o1\n", "\u0661"])
def test_a_worker_can_name_only_its_own_memory(name: str) -> None:
    fd = make_file()
    memory = SharedMemory("i", lambda: os.dup(fd), Budget(None), 1 << 20)
    try:
        for block in (
            SharedBlock(name, 0, 1),
            SharedBlock("o1", 1 << 32, 1),
            SharedBlock("o1", (1 << 64) - 1, 1),
            SharedBlock("o1", 0, (1 << 20) + 1),
            # What the host has never sent there can't come back.
            SharedBlock("i1", 0, 1),
        ):
            with pytest.raises(FrameError):
                memory.borrow(Payload(MSGPACK, b"\xc0", [block]))
        several = [SharedBlock("o1", 0, 1 << 19)] * 3
        with pytest.raises(FrameError):
            memory.borrow(Payload(MSGPACK, b"\xc0", several))
    finally:
        memory.close()
        os.close(fd)


@pytest.mark.parametrize("open_pool", [sp.open_pool, open_pool_elsewhere], ids=["inherited", "offered"])
async def test_memory_that_is_shared_with_a_worker_can_not_be_cut_short(open_pool: Any) -> None:
    data = bytes(range(256)) * 4096
    async with open_pool(ADAPTER, size=1) as pool:
        kept = await pool.execute("echo", {"value": memoryview(data)})
        [before] = pool.workers()
        tried = await pool.execute("cut_memory_short")
        assert tried and set(tried) == {"PermissionError"}
        assert kept == data
        assert await pool.execute("echo", {"value": data}) == data
        # It can spoil what is its own to send, but nobody who looks at it dies of that.
        await pool.execute("empty_memory")
        assert len(bytes(kept)) == len(data)
        assert pool.workers()[0].id == before.id
        assert await pool.execute("fine") == "fine"
