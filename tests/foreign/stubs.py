"""What stock libraries need to speak our protocol: stubs by protoc, and npm's packages, made once for all test runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

__all__ = ["EXAMPLES", "PROTOS", "compile_protos", "node_modules"]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "foreign"
PROTOS = ROOT / "protos"


def compile_protos(place: Path) -> Path:
    """A directory for ``sys.path`` with what protoc makes of the protocol."""
    pytest.importorskip("grpc_health.v1", reason="grpcio-health-checking is not installed")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), f"--python_out={place}",
         f"--grpc_python_out={place}", "snakepit/v1/payload.proto", "snakepit/v1/worker.proto"],
        check=True, cwd=PROTOS,
    )  # fmt: skip
    return place


def node_modules(cache: Path) -> Path:
    """npm's packages for the example in Node. Skips the test where there is no Node, or no registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    modules = cache / "node_modules"
    wanted = (EXAMPLES / "package.json").read_text()
    done = cache / "installed.json"
    with open(cache / "lock", "w") as lock:
        # Another process of this test run may be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            (cache / "package.json").write_text(wanted)
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            try:
                subprocess.run(command, cwd=cache, check=True, capture_output=True, timeout=60, env=dict(os.environ))
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
                pytest.skip(f"npm can't install: {(exc.stderr or b'')[-200:]!r}")
            done.write_text(wanted)
    return modules
