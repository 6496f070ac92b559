"""A thread of the import holds the lock of a log handler for as long as the process lives."""

import logging
import threading

import snakepit_trio as sp

handler = logging.StreamHandler()
logging.getLogger().addHandler(handler)
held, let_go = threading.Event(), threading.Event()


def hold() -> None:
    with handler.lock:
        held.set()
        let_go.wait()


threading.Thread(target=hold, daemon=True).start()
held.wait()


@sp.tool
def say() -> str:
    logging.getLogger(__name__).warning("hello")
    return "said"


@sp.tool
def release() -> None:
    let_go.set()
