"""An adapter whose import gives all sockets a timeout, as many libraries do."""

import os
import signal
import socket
import time
from typing import Any

import snakepit_trio as sp

socket.setdefaulttimeout(0.01)


@sp.tool
def echo(value: Any, seconds: float = 0) -> Any:
    time.sleep(seconds)
    return value


@sp.tool
def ask(ctx: sp.ToolContext) -> Any:
    return ctx.call_host_sync("answer")


@sp.tool
def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)  # It may be for another thread.


@sp.tool
async def default_timeout() -> float | None:
    return socket.getdefaulttimeout()
