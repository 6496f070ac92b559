"""What a plain pool and its workers import: no more than they use, for each worker starts with it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: What only extras, the bridge, foreign workers, a client or the command line need.
OF_OTHERS = {
    "betterproto2", "grpc", "google", "grpclib.client", "grpclib.server", "importlib.metadata", "mcp", "multidict", "numpy",
    "opentelemetry", "pandas", "polars", "prometheus_client", "pyarrow", "pydantic", "ray", "redis", "rich", "textual", "typer",
    "uvicorn", "uvloop", "snakepit_trio.bridge", "snakepit_trio.client", "snakepit_trio.cli", "snakepit_trio.wire.generated",
}  # fmt: skip
#: A worker has grpclib's server; the event loops only when its tools are async.
OF_HOSTS = {
    "anyio", "attr", "attrs", "psutil", "snakepit_trio.config", "snakepit_trio.pool", "snakepit_trio.supervision", "sniffio",
    "sqlite3", "trio",
}  # fmt: skip


def imported(code: str) -> set[str]:
    """The modules that a fresh interpreter has after this."""
    code = f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("code", "most", "others"),
    [
        pytest.param("import snakepit_trio", 80, OF_OTHERS | OF_HOSTS | {"asyncio", "h2", "msgspec"}, id="the package"),
        pytest.param("import snakepit_trio as sp; sp.open_pool", 530, OF_OTHERS, id="a plain pool"),
        pytest.param(
            "import snakepit_trio.worker.boot, snakepit_trio.worker.server",
            320,
            OF_OTHERS - {"grpclib.server", "multidict"} | OF_HOSTS,
            id="a worker",
        ),
    ],
)
def test_what_is_imported(code: str, most: int, others: set[str]) -> None:
    found = imported(code)
    assert found & others == set()
    assert len(found) <= most
