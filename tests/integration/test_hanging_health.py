"""A health() that never answers costs neither its worker's teardown nor the time of its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from snakepit_trio.wire import frames
from tests.integration.test_wires import connected, worker
from tests.integration.test_worker_io import Driver
from tests.until import appears

pytestmark = pytest.mark.anyio

KINDS: dict[str, dict[str, Any]] = {
    "lead": {"adapter": "Plain"},
    "threads": {"adapter": "Plain", "threads": 2},
    "sync on trio": {"adapter": "Mixed", "worker_backend": "trio"},
    "trio": {"adapter": "Async", "worker_backend": "trio"},
    "asyncio": {"adapter": "Async", "worker_backend": "asyncio"},
}


@pytest.fixture(params=["trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What is tested is the worker; which event loop drives it from outside is of no importance."""
    return str(request.param)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_ends_while_its_health_is_asked_for(kind: str, anyio_backend: str, tmp_path: Path) -> None:
    options = {**KINDS[kind], "adapter": f"tests.adapters.unanswering:{KINDS[kind]['adapter']}"}
    with anyio.fail_after(40):
        async with (
            worker(tmp_path, env={"UNANSWERING": str(tmp_path)}, **options) as (address, process),
            connected(anyio_backend, address) as connection,
            anyio.create_task_group() as nursery,
        ):
            host = Driver(connection, process.pid)
            answers: list[bytes] = []

            async def ask() -> None:
                answers.append(await connection.unary("/grpc.health.v1.Health/Check", b""))

            nursery.start_soon(ask)
            await appears(tmp_path / "asked")
            # One that is left by whoever asked is nobody's.
            with anyio.move_on_after(0.05):
                await connection.unary("/grpc.health.v1.Health/Check", b"")
            assert await host.value(host.call("echo", {"value": "meanwhile"})) == "meanwhile"
            host.send(frames.Stop(0))
            assert (await process.wait()).code == 0
            assert (tmp_path / "torn down").exists()
            assert answers == [b"\x08\x02"]
