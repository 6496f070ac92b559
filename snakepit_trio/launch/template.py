"""The template process: imports the adapter once, then forks workers on request.

It runs no thread and no event loop, because a fork copies only the thread that calls it. It is asked over a socket by
:mod:`snakepit_trio.launch.fork_server`, one question at a time:

- ``{"adapter": ..., "path": [...], "backend": ..., "host_backend": ...}``: import this; answered with ``{"helpers":
  [[pid, start time], ...]}``, the processes that the import has started, and ``"unforkable": reason`` if it is so
- ``{"worker": id}`` with the worker's descriptors: fork; answered with ``{"pid": ...}`` and a descriptor by which the host
  holds the child
- ``{"reap": pid}``: take the exit status of a child that has ended; answered with ``{"code": ...}`` or ``{"signal": ...}``

The end of the socket is the end of the template; its workers have lifelines of their own.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import faulthandler
import gc
import importlib
import inspect
import json
import os
import signal
import socket
import sys
import threading
import traceback
from types import ModuleType
from typing import Any

from snakepit_trio import _forks, _platform
from snakepit_trio.worker.lifeline import Lifeline
from snakepit_trio.worker.prelude import follow, read_boot

from .reseeding import find_generators, reseed

__all__ = ["main"]

#: How much later than the socket the lifeline may be cut when a host is killed, in seconds.
_LINGER = 0.2


class _Channel:
    """The blocking socket to the host."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=_forks.keep(fd))
        self._received = b""

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next question and its descriptors; None at the end."""
        fds: list[int] = []
        while True:
            if len(self._received) >= 4:
                size = int.from_bytes(self._received[:4], "big")
                if len(self._received) >= 4 + size:
                    body, self._received = self._received[4 : 4 + size], self._received[4 + size :]
                    return json.loads(body), fds
            data, more = _platform.receive_descriptors(self.socket, 65536, 8)
            fds += more
            if not data:
                return None
            self._received += data

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send an answer."""
        body = json.dumps(message).encode()
        data = len(body).to_bytes(4, "big") + body
        sent = socket.send_fds(self.socket, [data], list(fds)) if fds else 0
        self.socket.sendall(data[sent:])


def _import(question: dict[str, Any], lifeline: Lifeline) -> dict[str, Any]:
    """Import the modules that the workers need. Returns the answer: why the process can't be forked, if so, and the
    processes that the import has started.
    """
    follow(question["path"])
    # Only now, because their dependencies are on the host's path.
    importlib.import_module("snakepit_trio.worker.server")
    from snakepit_trio.worker.backend import choose_backend
    from snakepit_trio.worker.helpers import helpers_of_import
    from snakepit_trio.worker.importing import import_adapter
    from snakepit_trio.worker.stderr import mark_levels
    from snakepit_trio.worker.toolbox import find_tools

    mark_levels()
    try:
        with helpers_of_import() as helpers:
            module = import_adapter(question["adapter"].partition(":")[0])
    except (Exception, SystemExit):
        # Each worker tries again, and reports the error to its host.
        pass
    else:
        with contextlib.suppress(Exception):
            find_tools(module)
        if _has_async_tools(module):
            # Importing an event loop takes longer than the rest of a worker's start.
            backend = choose_backend(question["backend"], module, question["host_backend"])
            uvloop = ["uvloop"] if backend == "asyncio" else []
            for name in ("snakepit_trio.worker.loop_runner", f"anyio._backends._{backend}", *uvloop):
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
    _flush()
    answer: dict[str, Any] = {"helpers": helpers}
    torch = sys.modules.get("torch")
    lifeline.stop_for_forks()
    if _platform.thread_count() > 1:
        answer["unforkable"] = "importing it starts threads"
    elif torch is not None and torch.cuda.is_initialized():
        answer["unforkable"] = "importing it initialises CUDA"
    return answer


def _has_async_tools(module: ModuleType) -> bool:
    from snakepit_trio._exceptions import attempt
    from snakepit_trio.worker.adapter import options_of

    classes = [value for value in vars(module).values() if issubclass(type(value), type)]
    holders: list[Any] = [attempt(None, getattr, cls, "__dict__") or {} for cls in classes]
    return any(
        options_of(value) is not None and (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value))
        for holder in [vars(module), *holders]
        for value in holder.values()
    )


def _be_worker(channel: _Channel, lifeline: int, fds: list[int], worker: str, generators: list[Any]) -> int:
    """Run as the forked worker: discard everything of the template's, and return the worker's exit code.

    Args:
        fds: The worker's descriptors; the last, for errors, is replaced by the stream's once that is redirected.
    """
    os.setsid()
    # The template's own descriptors now lead to /dev/null.
    os.close(lifeline)
    channel.socket.close()
    _forks.adopt()
    # Exit handlers registered in the template belong to it; a worker's handlers run at its own end.
    atexit._clear()
    worker_lifeline, report, marks, stdout, stderr = map(_forks.above_streams, fds)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    fds[-1] = 2
    os.close(stdout)
    os.close(stderr)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.environ["SNAKEPIT_WORKER_ID"] = worker
    faulthandler.enable(2)
    # They would produce the same numbers in every worker.
    reseed(generators)
    from snakepit_trio.worker.boot import run_worker

    code = run_worker(read_boot(worker_lifeline), worker_lifeline, report, marks)
    # The interpreter's normal shutdown, without the template's frames below.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    return code


def _flush() -> None:
    """Flush the standard streams, which the import may have replaced by anything."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()


def _fork(channel: _Channel, lifeline: int, question: dict[str, Any], fds: list[int], generators: list[Any]) -> None:
    try:
        pid, held = _platform.fork_watched()
        if pid == 0:
            code = 1
            try:
                code = _be_worker(channel, lifeline, fds, question["worker"], generators)
            except BaseException:
                # On the worker's stream, which the host reads, and not the template's.
                with contextlib.suppress(OSError):
                    os.dup2(fds[-1], 2)
                traceback.print_exc()
            finally:
                try:
                    _flush()
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
    except OSError as exc:
        # A child that was not reported ends by itself, because its lifeline is cut.
        channel.send({"error": str(exc)})
    else:
        try:
            channel.send({"pid": pid}, (held,))
        finally:
            os.close(held)
    finally:
        for fd in fds:
            os.close(fd)


def _reap(pid: int) -> dict[str, Any]:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return {}
    code = os.waitstatus_to_exitcode(status)
    return {"signal": -code} if code < 0 else {"code": code}


def main() -> int:
    """Run the template until the host is gone."""
    parser = argparse.ArgumentParser(
        prog="snakepit_trio.launch.template", description="Started by its host, not by hand."
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--channel", type=int, required=True)
    options = parser.parse_args()
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifeline = Lifeline(options.lifeline)
    channel = _Channel(options.channel)
    os.set_inheritable(channel.socket.fileno(), False)
    question = channel.receive()
    if question is None:
        return 0
    answer = _import(question[0], lifeline)
    gc.collect()
    generators = find_generators()
    gc.freeze()
    channel.send(answer)
    while (question := channel.receive()) is not None:
        message, fds = question
        if "worker" in message:
            _fork(channel, options.lifeline, message, fds, generators)
        elif "reap" in message:
            channel.send(_reap(message["reap"]))
    if lifeline.unwatched:
        # A host that was killed has cut both; what the import has started in this group goes with it.
        lifeline.linger(_LINGER)
    return 0


if __name__ == "__main__":
    sys.exit(main())
