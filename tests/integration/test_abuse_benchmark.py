"""benchmarks/abuse.py runs as it stands; what it measures at length is in docs/reliability.md."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import anyio
import pytest

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
#: One by a worker, one by a client.
ABUSES = {"trio": ("many_blocks", "worker: protocol"), "asyncio": ("one_byte_frames", "connection: ENHANCE_YOUR_CALM")}


async def test_it_measures_an_abuse(tmp_path: Path, anyio_backend_name: str) -> None:
    record = tmp_path / "record.json"
    name, end = ABUSES[anyio_backend_name]
    arguments = [sys.executable, str(ROOT / "benchmarks" / "abuse.py"), "--backend", anyio_backend_name]
    arguments += ["--only", name, "--quiet", "0.2", "--seconds", "0.5", "--json", str(record)]
    done = await anyio.run_process(
        arguments, stderr=None, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stdout.decode()
    found = json.loads(record.read_text())[anyio_backend_name][name]
    assert set(found["memory"]) == {"host", "worker", "client"}
    assert found["loop"]["longest_s"] > 0
    assert found["bystander"]["quiet"]["calls"] > 0
    assert not found["bystander"]["abused"]["failed"]
    assert found["ended"][end]
