"""CPU time of processes, as the system counts it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from snakepit_trio.observe import cpu, memory

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


class Family:
    """A system with processes of its own: the children of each by its id, and of each the pages that it holds."""

    def __init__(self, children: dict[str, str], pages: int = 3) -> None:
        self.children = children
        self.pages = pages

    def listdir(self, path: str) -> list[str]:
        _, _, pid, tasks = path.split("/")
        assert tasks == "task"
        if pid not in self.children:
            raise FileNotFoundError
        return [pid, f"{pid}1"]

    def open(self, path: str, mode: str = "r") -> Any:
        pid, kind = path.split("/")[2], path.split("/")[-1]
        if pid not in self.children:
            raise FileNotFoundError
        if kind == "statm":
            return io.BytesIO(b"999 %d 5 5 5 5 5" % self.pages)
        # All of them are the first thread's.
        return io.StringIO(self.children[pid] if path.split("/")[4] == pid else "")


def test_the_members_of_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Family({"1": "2 3", "2": "4", "3": "", "4": ""})
    monkeypatch.setattr(memory.os, "listdir", there.listdir)
    monkeypatch.setattr(memory, "open", there.open, raising=False)
    assert list(memory.family(1)) == ["1", "2", "3", "4"]
    assert memory.resident(1) == 4 * 3 * os.sysconf("SC_PAGE_SIZE")
    # One that ends in between counts for nothing, and keeps nobody else from being counted.
    del there.children["2"]
    assert list(memory.family("1")) == ["1", "2", "3"]
    assert memory.resident(1) == 2 * 3 * os.sysconf("SC_PAGE_SIZE")
    assert memory.resident(9) == 0
    # Of a large family the rest is not looked for: no descendants of the one with whom it became large.
    there.children = {str(n): str(n + 1) for n in range(1, 1000)}
    assert len(list(memory.family(1))) == 201
    there.children = {"1": " ".join(str(n) for n in range(2, 201)), **{str(n): "" for n in range(2, 201)}}
    assert len(list(memory.family(1))) == 200
