"""Tools that fork, and children that come back from where they were forked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import snakepit_trio as sp

_LEAVE = {
    "return": lambda: None,
    "raise": lambda: 1 / 0,
    "exit": lambda: sys.exit(7),
}


def fork(how: str) -> dict[str, Any] | None:
    """Fork; what became of the child in the parent, None in the child."""
    pid = os.fork()
    if pid == 0:
        time.sleep(0.02)  # Longer than a worker waits before somebody else does its I/O.
        _LEAVE[how]()
        return None
    return {"parent": os.getpid(), "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


@sp.tool
def come_back(how: str) -> Any:
    time.sleep(0.02)
    return fork(how) or "the child speaks"


@sp.tool
def stream(how: str) -> Iterator[Any]:
    yield "first"
    yield fork(how) or "the child speaks"
    yield "last"


@sp.tool(inline=True)
def inline(how: str) -> Any:
    return fork(how) or "the child speaks"


@sp.tool
def what_a_child_has() -> list[str]:
    """Where the descriptors of a child lead that a worker does not have for its own use."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
            except FileNotFoundError:
                continue
        os.write(write, "\n".join(found).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        said = file.read().splitlines()
    os.waitpid(pid, 0)
    return said


@sp.tool
def terminate_a_child() -> int | None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(10)
    child.kill()
    child.join()
    return child.exitcode


@sp.tool
def speak_from_a_child(ctx: sp.ToolContext) -> int:
    """The child's exit code: 7 when it could neither call the host nor emit an event."""
    pid = os.fork()
    if pid == 0:
        ctx.emit("from.the.child")
        try:
            ctx.call_host_sync("anything")
        except sp.ConnectionLost:
            sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@sp.tool
def leave_one_behind() -> int:
    """A child that outlives its worker, in a session of its own."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for fd in (0, 1, 2):
            os.close(fd)
        signal.pause()
        os._exit(0)
    return pid


class InHooks(sp.Adapter):
    """Each hook forks, and the children come out of it."""

    def __init__(self) -> None:
        self.codes = [fork("raise")]

    def setup(self) -> None:
        self.codes += [fork("return"), fork("exit")]

    def health(self) -> bool:
        self.codes.append(fork("return"))
        return True

    def teardown(self) -> None:
        time.sleep(0.02)
        fork("return")
        print("torn down by", os.getpid())

    @sp.tool
    def told(self) -> list[Any]:
        return self.codes
