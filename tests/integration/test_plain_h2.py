"""With a release of h2 whose inner names are others, pools, bridges and clients work all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import snakepit_trio as sp
from tests.integration.test_plain_asyncio import _host

#: Python imports it in each process that it starts, so in the workers too.
RENAMED = """
import h2.connection
h2.connection._decode_header_block = h2.connection.__dict__.pop("_decode_headers")
for method in ("_receive_headers_frame", "_receive_push_promise_frame"):
    function = getattr(h2.connection.H2Connection, method)
    names = function.__code__.co_names
    assert "_decode_headers" in names
    renamed = tuple("_decode_header_block" if name == "_decode_headers" else name for name in names)
    function.__code__ = function.__code__.replace(co_names=renamed)
"""


async def _main(directory: str) -> None:
    from snakepit_trio.wire.http2 import engine
    from snakepit_trio.wire.http2.plain_h2 import PlainH2Connection

    assert engine._H2 is PlainH2Connection
    await _host(Path(directory))
    large = bytes(5 << 20)
    # Through the socket, in many frames.
    async with sp.open_pool("tests.adapters.basic", size=1, shm_limit=0) as pool:
        assert await pool.execute("echo", {"value": large}) == large
        async with pool.stream("count", {"n": 300}) as chunks:
            assert [chunk async for chunk in chunks] == list(range(300))


def test_everything_works_with_h2_alone(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(RENAMED)
    code = f"import asyncio\nfrom tests.integration.test_plain_h2 import _main\nasyncio.run(_main({str(tmp_path)!r}))"
    paths = [str(tmp_path), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join(paths), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Once in the host, and in what its workers come from.
    assert "h2 has no h2.connection._decode_headers" in done.stderr.replace(sp_version(), "h2")


def sp_version() -> str:
    """h2's name and version, as a message has them."""
    from snakepit_trio._private_names import release

    return " ".join(release("h2"))
