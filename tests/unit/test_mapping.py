"""Memory that is mapped stays where it is for as long as anybody may look at it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os
from snakepit_trio.wire import mapping
kept = []
atexit.register(lambda: print(kept[0][0], flush=True))  # After those that were registered later.
from snakepit_trio.wire.memory import Budget, SharedMemory, make_file
from snakepit_trio.wire.frames import MSGPACK, Payload
fd = make_file()
host, worker = (SharedMemory(side, lambda: os.dup(fd), Budget(None), 1 << 30) for side in "io")
sent = host.lend(Payload(MSGPACK, b"", [bytes([7]) * (1 << 20)]))
kept.append(worker.borrow(sent).buffers[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is made as Linux has it")
def test_a_view_may_be_read_while_the_interpreter_ends() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
