"""A tool that ends its worker, in each of the ways in which one can end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import snakepit_trio as sp


@sp.tool
def die(how: str) -> None:
    print("last words", file=sys.stderr, flush=True)
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(7)
    else:
        os.kill(os.getpid(), getattr(signal, how))


@sp.tool
def variable(name: str) -> str | None:
    return os.environ.get(name)
