"""What an async tool may do when it is cancelled: on Trio as in Trio, on asyncio as in asyncio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from snakepit_trio.wire import frames
from tests.integration.test_worker_io import driver
from tests.until import appears

pytestmark = pytest.mark.anyio

CLEANING = "tests.adapters.cleaning"
#: Where which tools are run.
CASES = [
    (backend, tool)
    for backend in ("trio", "asyncio")
    for tool in ("waits", "counts", "has_children", "in_asyncios_own")
    if backend == "asyncio" or tool != "in_asyncios_own"
]


@pytest.fixture(params=["trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What is tested is the worker; which event loop drives it from outside is of no importance."""
    return str(request.param)


def _options(tool: str) -> dict[str, Any]:
    return {"stream": True, "credits": 5} if tool == "counts" else {}


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_a_cancelled_tool_may_wait_in_its_clean_up(backend: str, anyio_backend: str, tmp_path: Path) -> None:
    async with driver(tmp_path, anyio_backend, adapter=CLEANING, worker_backend=backend) as host:
        for where, tool in CASES:
            if where != backend:
                continue
            for shield in (False, True):
                for how in ("cancel", "deadline"):
                    marker = str(tmp_path / f"{tool}-{shield}-{how}")
                    timeout = {"timeout_us": 30_000} if how == "deadline" else {}
                    id = host.call(tool, {"marker": marker, "shield": shield}, **_options(tool), **timeout)
                    await appears(Path(f"{marker}.begun"))
                    if how == "cancel":
                        host.send(frames.Cancel(id))
                    code = (await host.reply(id)).error.code
                    assert code == ("request_cancelled" if how == "cancel" else "request_timeout"), marker
                    # Trio cancels each wait that is not shielded, asyncio one.
                    cleaned = shield or backend == "asyncio"
                    begun = [*tmp_path.glob(f"{tool}-{shield}-{how}*.begun")]
                    assert begun
                    for place in begun:
                        assert place.with_suffix(".cleaned").exists() == cleaned, place


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_a_shielded_block_ends_before_a_cancellation_begins(
    backend: str, anyio_backend: str, tmp_path: Path
) -> None:
    async with driver(tmp_path, anyio_backend, adapter=CLEANING, worker_backend=backend) as host:
        for how in ("cancel", "deadline"):
            marker, until = str(tmp_path / how), tmp_path / f"{how}.until"
            timeout = {"timeout_us": 30_000} if how == "deadline" else {}
            id = host.call("is_shielded", {"marker": marker, "until": str(until)}, **timeout)
            await appears(Path(f"{marker}.begun"))
            if how == "cancel":
                host.send(frames.Cancel(id))
                await host.pong(1)
            else:
                await anyio.sleep(0.05)
            assert not host.found(frames.Reply, id)
            until.touch()
            code = (await host.reply(id)).error.code
            assert code == ("request_cancelled" if how == "cancel" else "request_timeout")
            assert Path(f"{marker}.undisturbed").exists()
            assert Path(f"{marker}.cleaned").exists()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_a_tool_that_never_rests_is_cancelled(backend: str, anyio_backend: str, tmp_path: Path) -> None:
    async with driver(tmp_path, anyio_backend, adapter=CLEANING, worker_backend=backend) as host:
        for number in range(5):
            marker = str(tmp_path / str(number))
            id = host.call("busy", {"marker": marker})
            await appears(Path(f"{marker}.begun"))
            host.send(frames.Cancel(id))
            assert (await host.reply(id)).error.code == "request_cancelled"
            assert Path(f"{marker}.cleaned").exists()
