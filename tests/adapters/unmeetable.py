"""A tool that nobody can call."""

import threading

import snakepit_trio as sp


@sp.tool
def wait(event: threading.Event) -> None:
    event.wait()
