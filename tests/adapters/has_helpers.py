"""An adapter whose import starts processes, of each kind, and writes down which; and then does what it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import snakepit_trio as sp

SLEEP = "import time; print(flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def note(kind: str, pid: int) -> None:
    with open(os.environ["HELPERS"], "a") as file:
        file.write(f"{os.getpid()} {kind} {pid}\n")


def start(kind: str, code: str = SLEEP, **options: object) -> None:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    process.stdout.readline()
    note(kind, process.pid)


def daemon() -> None:
    """Of the classic kind: forked twice, in a session of its own, nobody's child."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            os.close(write)
            time.sleep(600)
        os._exit(0)
    os.waitpid(middle, 0)
    note("daemon", int(os.read(read, 20)))
    os.close(read)
    os.close(write)


start("child")
start("session", start_new_session=True)
start("deaf", DEAF, start_new_session=True)
daemon()
then = os.environ.get("HELPERS_THEN")
if then == "raise":
    raise RuntimeError("after all that")
if then == "hang":
    note("hanging", os.getpid())
    time.sleep(600)
if then == "exit":
    os._exit(3)
if then == "thread":
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


@sp.tool
def pid() -> int:
    return os.getpid()
