"""CPU time of processes, as the system counts it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from snakepit_trio.observe import cpu

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@LINUX
def test_a_process_and_all_its_threads() -> None:
    burn(0.02)
    before, found, after = time.process_time(), cpu.cpu_time(os.getpid()), time.process_time()
    assert found is not None and before <= found <= after


@LINUX
def test_a_family() -> None:
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True)\ninput()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        alone, both = cpu.cpu_time(os.getpid()), cpu.cpu_time_of_family(os.getpid())
        theirs = cpu.cpu_time_of_family(child.pid)
        assert alone is not None and both is not None and theirs is not None
        assert theirs >= 0.1 and both >= alone + 0.1
        child.kill()
        child.wait()
        assert cpu.cpu_time(child.pid) is None and cpu.cpu_time_of_family(child.pid) is None
