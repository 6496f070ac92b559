"""An adapter whose setup never ends."""

import time

import snakepit_trio as sp


@sp.tool
def add(a: int, b: int) -> int:
    return a + b


def setup() -> None:
    time.sleep(3600)
