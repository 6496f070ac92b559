"""An adapter that starts a thread while it is imported, so that it can't be forked."""

import threading

import snakepit_trio as sp

_stop = threading.Event()
threading.Thread(target=_stop.wait, daemon=True).start()


@sp.tool
def add(a: int, b: int) -> int:
    return a + b
