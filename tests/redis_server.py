"""A Redis or Valkey server of the tests' own, on a Unix socket, that keeps nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["redis_server"]

#: How long it may take to start, in seconds.
_START = 10.0


@contextmanager
def redis_server() -> Iterator[str]:
    """Its URL. Skips the test, with the reason, where none can be started."""
    pytest.importorskip("redis", reason="the extra `redis` is not installed")
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("there is no redis-server; Debian's package of that name has it")
    with tempfile.TemporaryDirectory(prefix="spr") as place:
        socket = f"{place}/s"
        command = [found, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", place]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                until = time.monotonic() + _START
                while not os.path.exists(socket):
                    if server.poll() is not None or time.monotonic() > until:
                        pytest.skip(f"{found} did not start here")
                    time.sleep(0.01)
                yield f"unix://{socket}"
            finally:
                server.terminate()
