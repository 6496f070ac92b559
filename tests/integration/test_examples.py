"""The programs in examples/ that were written from the documentation alone do what they are for."""

from __future__ import annotations

import difflib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MIGRATION = EXAMPLES / "migration"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **more}


def printed(program: Path) -> str:
    done = subprocess.run(
        [sys.executable, program.name], cwd=program.parent, capture_output=True, text=True, timeout=100, check=False,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pipeline() -> None:
    for name in ("pandas", "polars", "pyarrow"):
        pytest.importorskip(name)
    lines = printed(EXAMPLES / "pipeline.py").splitlines()
    assert lines[0].startswith("day 0: {'Oslo': 1")
    assert lines[3:] == [
        "4 arrays of 50 MB, centred: [0.0, 0.0, 0.0, 0.0]",
        "24 leaky calls, none lost; workers replaced: True",
        "'hangs' was running when timeout=0.5 was spent",
        "and the pool goes on: 1000 readings",
    ]


@pytest.mark.parametrize("kind", ["executor", "trio_parallel"])
def test_a_migrated_program_prints_the_same_and_differs_in_so_many_lines(kind: str) -> None:
    if kind == "trio_parallel":
        pytest.importorskip("trio_parallel")
    before, after = MIGRATION / f"{kind}_before.py", MIGRATION / f"{kind}_after.py"
    assert printed(before) == printed(after) != ""
    lines = [path.read_text().splitlines()[1:] for path in (before, after)]
    changed = Counter(line[0] for line in difflib.ndiff(*lines) if line[2:].strip())
    told = re.search(
        rf"`{kind}_before\.py`.*?(\d+) lines of (\d+) go, and (\d+) come",
        (ROOT / "docs/guides/migration.md").read_text(),
    )
    assert told, "docs/guides/migration.md does not say how many"
    whole = sum(bool(line.strip()) for line in lines[0])
    assert tuple(map(int, told.groups())) == (changed["-"], whole, changed["+"])


# ---- the web service ---------------------------------------------------------------------------------


@contextmanager
def served() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "documents_service:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=EXAMPLES, env=environment(WORKERS="1"))
    url = f"http://127.0.0.1:{port}"
    try:
        limit = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(f"{url}/health").status_code == 200
                break
            except httpx.ConnectError:
                assert process.poll() is None, "the server has ended"
                assert time.monotonic() < limit, "the server does not listen"
                time.sleep(0.05)
        yield url, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def picture(side: int) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(data, "PNG")
    return data.getvalue()


def document() -> bytes:
    from pypdf import PdfWriter

    data = io.BytesIO()
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(data)
    return data.getvalue()


def test_the_web_service() -> None:
    for name in ("PIL", "pypdf", "uvicorn", "fastapi"):
        pytest.importorskip(name)
    with served() as (url, process):
        anyio.run(_use, url, process)


async def _use(url: str, process: subprocess.Popen[bytes]) -> None:
    large, small = picture(5000), picture(400)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def health() -> dict[str, object]:
            return (await client.get("/health")).json()

        async def post(data: bytes, found: list[int]) -> None:
            found.append((await client.post("/thumbnail", content=data)).status_code)

        # Good and bad files.
        answer = await client.post("/thumbnail?size=16", content=small)
        assert (answer.status_code, answer.headers["content-type"], answer.content[:4]) == (
            200,
            "image/png",
            b"\x89PNG",
        )
        assert (await client.post("/text", content=document())).json() == [""]
        assert (await client.post("/text", content=b"%PDF-1.4 broken")).status_code == 422
        answer = await client.post("/thumbnail", content=b"no image")
        assert (answer.status_code, answer.json()) == (422, {"detail": "this is not an image"})

        # A client that goes away: its call is cancelled.
        with anyio.move_on_after(0.2):
            await client.post("/thumbnail?size=4999", content=large)
        with anyio.fail_after(20):
            while not (await health())["cancelled"]:
                await anyio.sleep(0.02)

        # More than the queue holds: some are told to come again, none is slow or lost.
        found: list[int] = []
        async with anyio.create_task_group() as nursery:
            for _ in range(12):
                nursery.start_soon(post, large, found)
        assert set(found) == {200, 429} and len(found) == 12, found

        # A worker that is killed under load: the tool is idempotent, so nobody notices.
        found = []
        before = await health()
        async with anyio.create_task_group() as nursery:
            for _ in range(4):
                nursery.start_soon(post, large, found)
            with anyio.fail_after(20):
                while not (await health())["in_flight"]:
                    await anyio.sleep(0.02)
            os.kill(before["workers"][0], signal.SIGKILL)  # type: ignore[index]
        assert found == [200] * 4
        after = await health()
        assert after["restarts"] == before["restarts"] + 1  # type: ignore[operator]

        # SIGTERM under load: what has begun is answered, and nothing is left.
        found = []
        children = psutil.Process(process.pid).children(recursive=True)
        async with anyio.create_task_group() as nursery:
            for _ in range(3):
                nursery.start_soon(post, large, found)
            with anyio.fail_after(20):
                while not (await health())["in_flight"]:
                    await anyio.sleep(0.02)
            process.terminate()
        assert found == [200] * 3
    assert await anyio.to_thread.run_sync(process.wait, 30) in (0, -signal.SIGTERM)
    assert psutil.wait_procs(children, timeout=5)[1] == []
