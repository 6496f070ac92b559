"""Tools that misbehave in ways that a supervisor has to notice."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import snakepit_trio as sp

hoard: list[bytes] = []


@sp.tool
def pid() -> int:
    return os.getpid()


@sp.tool
def spin(seconds: float) -> str:
    """Keep the interpreter busy; it gives the GIL up now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return "spun"


@sp.tool
def freeze() -> None:
    """Stop the whole process, as a debugger or a swapping machine would."""
    os.kill(os.getpid(), signal.SIGSTOP)


@sp.tool(idempotent=True)
def compute(seconds: float) -> str:
    """Keep the GIL in C code, and compute."""
    n, began = 1_000_000, time.monotonic()
    sum(range(n))
    sum(range(int(n * seconds / (time.monotonic() - began))))
    return "computed"


@sp.tool
def block(seconds: float) -> None:
    """Keep the GIL in C code that waits, as in a deadlock."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


@sp.tool
def leak(size: int) -> int:
    hoard.append(b"x" * size)
    return len(hoard)


@sp.tool
def ignore_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    while True:
        time.sleep(1)


@sp.tool
def leave() -> None:
    os._exit(1)


symptoms: list[str] = []


@sp.tool
def fall_ill() -> None:
    symptoms.append("fever")


def health() -> bool:
    return not symptoms
