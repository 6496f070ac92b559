"""An adapter whose setup fails."""

import snakepit_trio as sp


@sp.tool
def add(a: int, b: int) -> int:
    return a + b


def setup() -> None:
    raise RuntimeError("no such device")
