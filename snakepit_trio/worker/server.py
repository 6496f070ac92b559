"""A worker process from its boot message to its exit code.

One thread runs an asyncio loop with the gRPC server and never any user code, so heartbeats are answered whatever a tool
does. The main thread runs user code through a runner. If the main thread runs one sync tool at a time, it also does the
I/O between them, and the I/O thread only relieves it (:mod:`.shared_loop`).
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
import inspect
import os
import secrets
import signal
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from snakepit_trio import _forks
from snakepit_trio._exceptions import is_a, one_line
from snakepit_trio.errors import SnakepitError
from snakepit_trio.observe.correlation import in_worker
from snakepit_trio.observe.redaction import redact
from snakepit_trio.wire import failures
from snakepit_trio.wire.begun import BegunTable
from snakepit_trio.wire.http2.grpc_server import GRPCError, PipeServer, Status, silence
from snakepit_trio.wire.startup import Boot, Credentials, Report

from .adapter import load_adapter
from .backend import choose_backend
from .exchange import Exchange
from .failure import EXIT_STUCK, fatal, of_loop
from .helpers import helpers_of_import
from .importing import being_set_up
from .lifeline import end_children
from .main_thread import MainThreadRunner
from .runners import Runner, SyncRunner
from .service import WorkerService
from .stderr import mark_levels
from .toolbox import find_tools, toolbox_is_async

if TYPE_CHECKING:
    import ssl

    from snakepit_trio._platform import Identity

    from .runners import Answer
    from .toolbox import Tool

__all__ = ["EXIT_STUCK", "run"]

#: Seconds. The time for tools to stop once the host is gone.
_GONE_GRACE = 5.0
#: Seconds. The time in which the host must connect. After that, the lifeline and the end of its exchange show its end.
_MEETING_TIME = 60.0


def run(boot: Boot, report: Callable[[Report], None], marks: BegunTable) -> tuple[int, bool]:
    """Run the worker until the host asks for the end, or is gone. Returns the exit code, and whether the host is lost.

    Args:
        boot: The boot message.
        report: Called once: with the address when the worker can accept calls, or with the reason why it never will.
        marks: The begun table.
    """
    # The host handles the terminal's Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence()
    in_worker()
    mark_levels()
    with helpers_of_import() as helpers:
        try:
            with _forks.contained():
                module, target = load_adapter(boot.adapter)
                tools = find_tools(target)
        except BaseException as exc:
            failure: BaseException | None = exc
        else:
            failure = None
    if failure is not None:
        report(_failed(failure, helpers))
        return 1, False
    backend = choose_backend(boot.worker_backend, module, boot.host_backend)
    is_async = toolbox_is_async(target, tools)
    runner = _runner(is_async, backend, boot.threads)
    io = _Io(boot, tools, runner, backend, target, marks)
    signal.signal(signal.SIGTERM, io.on_sigterm)
    _forks.at_fork(io.forked)
    setting_up = True
    teardown = _Teardown(_hook(target, "teardown"))

    def ready() -> None:
        nonlocal setting_up
        address = io.start()
        setting_up = False
        report(Report(address=address, pid=os.getpid(), helpers=[*helpers]))

    try:
        setup = _hook(target, "setup", functools.partial(being_set_up, module.__name__))
        runner.main(setup, ready, teardown)
    except BaseException as exc:
        if setting_up:
            report(_failed(exc, helpers))
            return 1, False
        if exc is not teardown.raised:
            fatal(exc)
        raise
    finally:
        io.join()
        # The interpreter removes handlers before its end, and a repeated signal would kill a process that ends in order.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0, io.host_lost


class _Teardown:
    """The adapter's teardown, and its exception."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self.raised: BaseException | None = None

    def __call__(self) -> Any:
        try:
            found = self._function()
        except BaseException as exc:
            self.raised = exc
            raise
        return self._awaited(found) if inspect.isawaitable(found) else found

    async def _awaited(self, found: Any) -> None:
        try:
            await found
        except BaseException as exc:
            self.raised = exc
            raise


def _runner(is_async: bool, backend: str, threads: int) -> Runner:
    if is_async:
        # Imports anyio, which nothing else in a worker needs.
        from .loop_runner import LoopRunner

        return LoopRunner(backend, threads)
    return MainThreadRunner() if threads == 1 else SyncRunner(threads)


def _hook(target: Any, name: str, block: Callable[[], AbstractContextManager[None]] = nullcontext) -> Callable[[], Any]:
    """Return an adapter's method, if it has it, wrapped in a block; a fork made in it ends with it.

    Like the method, it may return an awaitable.
    """
    function = getattr(target, name, None) or _nothing

    async def awaited(value: Any) -> Any:
        with block(), _forks.contained():
            return await value

    def call() -> Any:
        with block(), _forks.contained():
            value = function()
        return awaited(value) if inspect.isawaitable(value) else value

    return call


def _nothing() -> None:
    """The setup and teardown of an adapter without them."""


def _failed(exc: BaseException, helpers: Sequence[Identity]) -> Report:
    info = failures.describe_exception(exc, redact=redact)
    return Report(
        code="worker_startup",
        message=failures.message_of(info),
        remote_types=list(info.remote_types),
        # For the library's own errors the message is enough.
        remote_traceback="" if is_a(exc, SnakepitError) else info.remote_traceback,
        helpers=[*helpers],
    )


def _check_private(directory: str) -> None:
    """Check that no other user can replace a socket in a directory, because clients send the run's token to it.

    Raises:
        OSError: The directory is missing, or not this user's; the error names it.
    """
    facts = os.lstat(directory)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"not a directory of user {os.geteuid()} alone", directory)


def _ask(health: Callable[[], object], answer: Answer) -> None:
    try:
        value = health()
    except BaseException as exc:
        answer(None, exc)
    else:
        answer(value, None)


def _unwell(exc: BaseException) -> GRPCError:
    """Return the answer to a health check after an exception of the adapter's ``health()``."""
    return GRPCError(Status.UNKNOWN, redact(f"health() raised {one_line(exc)}"))


def _server_context(tls: Credentials) -> ssl.SSLContext:
    """Return the TLS context of a server whose clients need a certificate."""
    from snakepit_trio.wire.credentials import tls_context

    return tls_context(tls.certificate, tls.key, tls.authority, server_side=True)


class _Io:
    """The gRPC server and its loop, which is a thread's own or shared with the runner."""

    def __init__(
        self, boot: Boot, tools: list[Tool], runner: Runner, backend: str, target: Any, marks: BegunTable
    ) -> None:
        self._boot = boot
        self._marks = marks
        self._tools = tools
        self._runner = runner
        self._backend = backend
        self._health = _hook(target, "health") if callable(getattr(target, "health", None)) else None
        self._asks_loop = inspect.iscoroutinefunction(getattr(target, "health", None))
        self._shared = runner.shared if isinstance(runner, MainThreadRunner) else None
        self._thread = threading.Thread(target=self._run, name="snakepit-io")
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exchange: Exchange | None = None
        self._asked: asyncio.Future[bool] | None = None

    @property
    def host_lost(self) -> bool:
        """Whether the host ended without a message."""
        return self._exchange is not None and self._exchange.host_lost

    def start(self) -> str:
        """Start the server, and return the address on which it listens.

        Raises:
            OSError: It can't listen.
        """
        if self._shared is not None:
            self._shared.start(self._main(), self._started.is_set)
            return self._address
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure
        return self._address

    def request_stop(self) -> None:
        """Begin an orderly stop, from any thread or a signal handler."""
        loop, exchange = self._loop, self._exchange
        if loop is not None and exchange is not None:
            loop.call_soon_threadsafe(exchange.stop, 1.0)
        else:
            end_children()
            os._exit(0)

    def on_sigterm(self, *_: object) -> None:
        """Handle SIGTERM."""
        self.request_stop()

    def forked(self) -> None:
        """In a process that user code has forked, restore SIGTERM's default, because the fork is not a worker."""
        if signal.getsignal(signal.SIGTERM) == self.on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def join(self) -> None:
        """Let the server write its remaining data, and wait for its end."""
        if self._shared is not None:
            if self._loop is not None:
                self._done.set()
            self._shared.close()
            return
        if self._thread.ident is None:
            return
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._done.set)
            except RuntimeError:
                pass  # It has ended by itself.
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._main(), debug=False)
        except BaseException as exc:
            self._failure = exc
            if self._started.is_set():
                fatal(exc)
            self._started.set()

    async def _main(self) -> None:
        self._done = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(of_loop)
        exchange = Exchange(
            self._boot,
            self._tools,
            self._runner,
            on_stop=self._on_stop,
            on_drained=self._runner.stop,
            marks=self._marks,
            shared=self._shared,
        )
        if isinstance(self._runner, MainThreadRunner):
            self._runner.flush = exchange.flush
            self._runner.sweep = exchange.sweep
        health = None if self._health is None else self._check_health
        service = WorkerService(self._boot, self._tools, self._runner, exchange, backend=self._backend, health=health)
        server = PipeServer([service], fatal)
        directory = self._boot.socket_dir
        if directory is not None:
            _check_private(directory)
            path = os.path.join(directory, f"{secrets.token_hex(6)}.sock")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _forks.keep(sock.fileno())
            sock.bind(path)
            await server.start(sock=sock)
            self._address = f"unix:{path}"
        else:
            bind = self._boot.bind
            tls = None if self._boot.tls is None else _server_context(self._boot.tls)
            sock = socket.create_server((bind, 0), family=socket.AF_INET6 if ":" in bind else socket.AF_INET)
            _forks.keep(sock.fileno())
            await server.start(sock=sock, ssl=tls)
            self._address = f"tcp:{f'[{bind}]' if ':' in bind else bind}:{sock.getsockname()[1]}"
        self._exchange, self._loop = exchange, loop
        unmet = loop.call_later(_MEETING_TIME, exchange.stop_unmet)
        self._started.set()
        try:
            await self._done.wait()
            exchange.flush()
            await asyncio.sleep(0)
        finally:
            unmet.cancel()
            server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), _GONE_GRACE)
            if directory is not None:
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def _on_stop(self) -> None:
        assert self._exchange is not None and self._loop is not None
        if self._asked is not None and not self._asked.done():
            # An ending worker is not healthy, and does not wait for the check.
            self._asked.set_result(False)
        # A tool that never returns blocks the main thread for ever; the host then kills the worker, if there is one.
        self._loop.call_later(_GONE_GRACE, self._give_up, self._exchange)

    @staticmethod
    def _give_up(exchange: Exchange) -> None:
        if exchange.abandoned:
            end_children()
            os._exit(EXIT_STUCK)

    async def _check_health(self) -> bool:
        """Ask the adapter: an async hook in the tools' event loop, a sync one in a thread.

        Only one check runs at a time, and concurrent requests get the same answer.
        """
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_future()
            # Retrieve the exception, because the request may have ended.
            self._asked.add_done_callback(asyncio.Future.exception)
            self._ask_adapter(functools.partial(self._answered, self._asked))
        return await asyncio.shield(self._asked)

    def _ask_adapter(self, answer: Answer) -> None:
        assert self._health is not None
        if self._asks_loop:
            self._runner.ask(self._health, answer)
            return
        # The thread is not joined: a hook that never returns ends with the process.
        ask = functools.partial(contextvars.copy_context().run, _ask, self._health, answer)
        threading.Thread(target=ask, name="snakepit-health", daemon=True).start()

    def _answered(self, asked: asyncio.Future[bool], value: object, error: BaseException | None) -> None:
        """Handle the adapter's answer. From any thread."""

        def settle() -> None:
            if asked.done():
                return
            if error is None:
                asked.set_result(value is not False)
            else:
                asked.set_exception(_unwell(error))

        with suppress(RuntimeError):  # The loop has ended meanwhile.
            asked.get_loop().call_soon_threadsafe(settle)
