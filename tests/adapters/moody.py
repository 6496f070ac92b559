"""Can't be set up while a file named by its environment is there."""

from __future__ import annotations

import os
import signal

import snakepit_trio as sp


def setup() -> None:
    if os.path.exists(os.environ["MOODY"]):
        raise RuntimeError(f"not now: {os.environ.get('SAYS', '')}")


@sp.tool
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
