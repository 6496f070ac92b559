"""What clients and workers of other makers need, made once for all tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.foreign.stubs import ROOT, node_modules


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What protoc makes of the project's files, for Python."""
    for module in ("grpc_tools", "grpc_status", "grpc_health", "grpc_reflection"):
        # Not imported: grpcio would keep its descriptors in this process.
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    out = tmp_path_factory.mktemp("stubs")
    files = [f"protos/snakepit/v1/{name}.proto" for name in ("payload", "worker", "bridge")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", f"--python_out={out}", f"--grpc_python_out={out}", *files],
        cwd=ROOT, check=True, timeout=60,
    )  # fmt: skip
    return out


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Path:
    """npm's packages, for ``NODE_PATH``, with @grpc/grpc-js among them."""
    return node_modules(request.config.cache.mkdir("foreign-node"))  # type: ignore[union-attr]
