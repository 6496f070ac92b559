"""An adapter whose workers soon give up the wait for their host."""

import snakepit_trio as sp
from snakepit_trio.worker import server

server._MEETING_TIME = 0.5


@sp.tool
def echo(value: str) -> str:
    return value
