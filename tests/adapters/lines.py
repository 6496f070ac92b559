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
def work(seconds: float = 0.0, name: str = "") -> str:
    """Deaf to its cancel; of less than 0 seconds it kills its worker at their end."""
    _begin(name)
    time.sleep(abs(seconds))
    if seconds < 0:
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
