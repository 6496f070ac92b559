"""An adapter whose workers have a child process each, and tools that are hard to stop."""

import ctypes
import subprocess
import time

import snakepit_trio as sp

children: list[subprocess.Popen[bytes]] = []


def setup() -> None:
    children.append(subprocess.Popen(["sleep", "3600"]))


@sp.tool
def child() -> int:
    return children[0].pid


@sp.tool
def spin() -> None:
    while True:
        pass


@sp.tool
def nap() -> None:
    time.sleep(3600)


@sp.tool
def hold_the_gil() -> None:
    """C code that does not give the GIL back."""
    ctypes.PyDLL(None).sleep(3600)
