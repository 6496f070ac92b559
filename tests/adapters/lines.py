"""Tools that tell when they ran, and how many of them at once."""

import os
import signal
import time

import anyio.lowlevel

import snakepit_trio as sp

_running: list[str] = []
_most: list[int] = [0]


def _begin(name: str) -> None:
    _running.append(name)
    _most[0] = max(_most[0], len(_running))
    if "LINES_LOG" in os.environ:
        with open(os.environ["LINES_LOG"], "a") as file:
            file.write(f"{name}\n")


@sp.tool
def work(name: str = "", seconds: float = 0.0, until: str = "", *, dies: bool = False) -> str:
    """Deaf to its cancel; goes on until the file is there, and may kill its worker then."""
    _begin(name)
    time.sleep(seconds)
    while until and not os.path.exists(until):
        time.sleep(0.002)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    _running.remove(name)
    return name


@sp.tool
async def async_work(name: str = "") -> str:
    _begin(name)
    await anyio.lowlevel.checkpoint()
    _running.remove(name)
    return name


@sp.tool
def most_at_once() -> int:
    return _most[0]
