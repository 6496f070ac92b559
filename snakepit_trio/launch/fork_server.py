"""Workers as forks of a template process that has imported the adapter already.

The host's side. A template is started like a spawned worker, once for each kind of worker (adapter, environment,
directory); it answers over a Unix socket whose other end nobody else holds. For each worker the host sends the worker's
ends of its pipes; the template forks, and answers with the child's pid and a descriptor by which the host holds it (see
``_platform.fork_watched``), made before anybody could have reaped it. The template never reaps a child before the host says
so: until then the child's process group can't be a stranger's. A template that ends or stops answering is ended and replaced
by the next start; its workers go on, only how they end can't be told any more.

The protocol of that socket: messages of 4 bytes of big-endian length and JSON, one after another; descriptors ride on the
first byte of a message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import anyio
import attrs

from snakepit_trio import _forks, _platform, _private_names
from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.observe.line_levels import unmarked
from snakepit_trio.observe.printable import printable
from snakepit_trio.observe.redaction import LineRedactor, redact
from snakepit_trio.observe.worker_output import WorkerOutput

from .base import ExitStatus, ProcessBook, WorkerProcess, WorkerSpec
from .descriptors import make_descriptors
from .environment import worker_environment
from .helpers import Helpers
from .interpreter import import_path, python_command
from .process import Hold, LocalLauncher
from .spawn import SpawnLauncher

__all__ = ["ForkServerLauncher"]

# Of the template, which runs on the same interpreter.
_private_names.require("fork")

_log = logging.getLogger("snakepit_trio.launch")

#: How long a template may take to end once its lifeline is cut, in seconds.
_END_TIME = 2.0
#: How long a template that has imported its adapter may take to answer, in seconds.
_ANSWER_TIME = 10.0
#: How much of what a template prints is logged, in bytes, and told in an error, in lines.
_OUTPUT = 64 * 1024
_LAST_LINES = 20
_LONGEST = 1 << 20


class _TemplateLost(Exception):
    """The template has ended, or does not speak sense, or does not answer."""


class _Unforkable(Exception):
    """What the template has imported can't be forked."""


@attrs.frozen
class _Kind:
    """What workers must have in common to come from one template."""

    adapter: str
    env: tuple[tuple[str, str], ...]
    cwd: str | None
    threads: int

    @classmethod
    def of(cls, spec: WorkerSpec) -> _Kind:
        return cls(spec.adapter, tuple(sorted(spec.env.items())), spec.cwd, spec.threads)


class _Template:
    """One template process and the socket to it."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        channel: socket.socket,
        lifeline: int,
        output: int,
        on_end: Callable[[], None],
        helpers: Helpers,
    ) -> None:
        self._popen = popen
        self._helpers = helpers
        self._told = False
        self._channel = channel
        self._lifeline = lifeline
        self._output = output
        self._on_end = on_end
        self._turn = anyio.Lock()
        self._received = b""
        self._closed = False
        self.lost = False
        self.why = "it has ended"
        self._seen = 0

    @classmethod
    def start(cls, spec: WorkerSpec, book: ProcessBook) -> _Template:
        """Start a template. What it is to import comes with :meth:`hello`.

        Raises:
            OSError, ValueError: It can't be started.
        """
        name = f"template-{secrets.token_hex(4)}"
        book.reserve(name, "template", spec.pool)
        with contextlib.ExitStack() as kept:
            with contextlib.ExitStack() as passed:
                kept.callback(book.ended, name)
                lifeline_read, lifeline_write = _forks.pipe()
                passed.callback(_forks.close, lifeline_read)
                kept.callback(_forks.close, lifeline_write)
                ours, theirs = _forks.socketpair()
                passed.callback(theirs.close)
                kept.callback(ours.close)
                ours.setblocking(False)
                # What the import prints: a file without a name, for a pipe would need somebody to read it meanwhile.
                output = _forks.keep(_platform.make_private_file("snakepit-template"))
                kept.callback(_forks.close, output)
                command = [
                    *python_command("snakepit_trio.launch.template", spec), "--run", spec.run_id,
                    "--lifeline", str(lifeline_read), "--channel", str(theirs.fileno()),
                ]  # fmt: skip
                environment = worker_environment(spec)
                environment.pop("SNAKEPIT_WORKER_ID", None)
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(lifeline_read, theirs.fileno()),
                    env=environment,
                    cwd=spec.cwd,
                    start_new_session=True,
                )
                kept.callback(popen.wait)
                kept.callback(popen.kill)
                with contextlib.suppress(OSError):  # It has ended already.
                    _platform.arm_lifeline(lifeline_read, popen.pid)
                book.begun(name, popen.pid)
                helpers = Helpers(popen.pid, run_id=spec.run_id, pool=spec.pool, book=book)
                made = cls(popen, ours, lifeline_write, output, lambda: book.ended(name), helpers)
            # From here on they are the template's, to be closed at its end.
            kept.pop_all()
            return made

    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._closed and self._popen.poll() is None

    def output(self, begin: int = 0) -> list[str]:
        """The lines that it has printed from this byte on, the last ones when there are many; none once it is closed."""
        if self._closed:
            return []
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _OUTPUT, max(begin, size - _OUTPUT))
        return [printable(line) for line in data.decode(errors="backslashreplace").splitlines()]

    def news(self) -> list[str]:
        """Those since anybody has looked; none once it is closed."""
        size = 0 if self._closed else os.fstat(self._output).st_size
        begin, self._seen = self._seen, max(size, self._seen)
        return self.output(begin) if size > begin else []

    async def ask(self, question: dict[str, Any], fds: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a question, wait for its answer and the descriptors with it. One at a time.

        A cancellation waits for the answer first: the template would be out of step, or a child without an owner. An answer
        takes as long as a fork does, for the template does nothing else; one that takes far longer never comes.

        Raises:
            _TemplateLost: The template has ended, or does not answer.
        """
        async with self._turn:
            if self.lost:
                raise _TemplateLost("it has ended")
            try:
                with anyio.fail_after(_ANSWER_TIME, shield=True):
                    await self._send(question, fds)
                    answer = await self._receive()
            except (OSError, ValueError, EOFError) as exc:
                self.why = "it does not answer" if isinstance(exc, TimeoutError) else str(exc)
                self.lose()
                raise _TemplateLost(self.why) from exc
            except BaseException:
                # How far it has come is not known.
                self.lose()
                raise
            return answer

    async def hello(self, spec: WorkerSpec) -> dict[str, Any]:
        """Tell it what to import, and wait until it has. A cancellation makes the template useless.

        Raises:
            _TemplateLost: It has ended while it imported.
        """
        question = {
            "adapter": spec.adapter,
            "path": import_path(spec),
            "backend": spec.worker_backend,
            "host_backend": spec.host_backend,
        }
        try:
            async with self._turn:
                await self._send(question, ())
                answer, _ = await self._receive()
        except (OSError, ValueError, EOFError) as exc:
            self.lose()
            why = str(exc) if isinstance(exc, ValueError) else "the adapter's import ended it"
            raise _TemplateLost(why) from exc
        except BaseException:
            # At the lock too: nobody else knows of this template yet.
            self.lose()
            raise
        found = answer.get("helpers")
        self._helpers.told(found if isinstance(found, list) else ())
        self._told = True
        return answer

    def lose(self) -> None:
        """It is of no use any more."""
        self.lost = True
        if self.alive():
            if not self._told:
                # It may be in the middle of its import.
                self._helpers.look()
            self._popen.kill()

    async def _send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        body = json.dumps(message).encode()
        data = memoryview(len(body).to_bytes(4, "big") + body)
        while data:
            try:
                sent = socket.send_fds(self._channel, [data], list(fds)) if fds else self._channel.send(data)
            except BlockingIOError:
                await anyio.wait_writable(self._channel)
            else:
                data, fds = data[sent:], ()

    async def _receive(self) -> tuple[dict[str, Any], list[int]]:
        fds: list[int] = []
        try:
            while True:
                if len(self._received) >= 4:
                    size = int.from_bytes(self._received[:4], "big")
                    if size > _LONGEST:
                        raise ValueError("its answer makes no sense")
                    if len(self._received) >= 4 + size:
                        body, self._received = self._received[4 : 4 + size], self._received[4 + size :]
                        return json.loads(body), fds
                try:
                    data, more = _platform.receive_descriptors(self._channel, 65536, 8)
                except BlockingIOError:
                    await anyio.wait_readable(self._channel)
                    continue
                fds += more
                if not data:
                    raise EOFError("it has ended")
                self._received += data
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    async def aclose(self) -> None:
        """End it. Its workers go on: each has a lifeline of its own."""
        if self._closed:
            return
        self._closed = self.lost = True
        # Whatever becomes of one step, the others are made.
        async with contextlib.AsyncExitStack() as steps:
            steps.enter_context(anyio.CancelScope(shield=True))
            # Idempotent: it has been closed, unless :meth:`_hang_up` has failed.
            steps.callback(self._channel.close)
            steps.push_async_callback(self._note_end)
            steps.callback(_forks.close, self._output)
            # Cut last: while it lives this would be its death.
            steps.callback(_forks.close, self._lifeline)
            steps.push_async_callback(self._see_off)
            steps.push_async_callback(self._hang_up)

    async def _hang_up(self) -> None:
        # Whoever waits for an answer hears that there will be none. A descriptor that is closed under a waiter would leave it
        # waiting, and its number to the next file.
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        async with self._turn:
            self._channel.close()

    async def _see_off(self) -> None:
        if not await self._ended():
            self._popen.kill()

    async def _note_end(self) -> None:
        if await self._ended():
            self._on_end()

    @property
    def has_helpers(self) -> bool:
        """Whether its import has started processes."""
        return len(self._helpers) > 0

    async def end_helpers(self) -> None:
        """End what its import has started, which its workers may have used. It has been closed."""
        await self._helpers.end(told=self._told)

    async def _ended(self) -> bool:
        """Give it a moment to end; returns whether it has, and is reaped."""
        if self._popen.poll() is None:
            process = _platform.open_child(self._popen.pid)
            try:
                with anyio.move_on_after(_END_TIME):
                    await process.wait()
            finally:
                process.close()
        return self._popen.poll() is not None


class _TemplateReaper:
    """The template as the parent of a forked worker."""

    def __init__(self, template: _Template, pid: int) -> None:
        self._template = template
        self._pid = pid

    def alive(self) -> bool:
        return self._template.alive()

    async def reap(self) -> ExitStatus:
        try:
            answer, _ = await self._template.ask({"reap": self._pid})
        except _TemplateLost:
            return ExitStatus()  # The system has reaped it, and keeps to itself how it ended.
        return ExitStatus(code=answer.get("code"), signal=answer.get("signal"))


class ForkServerLauncher(LocalLauncher):
    """Forks workers from templates; starts those that can't be forked as new interpreters instead."""

    def __init__(self, book: ProcessBook | None = None, redact: Callable[[str], str] = redact) -> None:
        super().__init__(book)
        self._redact = redact
        self._templates: dict[_Kind, _Template] = {}
        self._starting: dict[_Kind, anyio.Lock] = {}
        self._unforkable: set[_Kind] = set()
        # Templates that are lost: their workers go on, and with them what the import has started.
        self._lost: list[_Template] = []
        self._spawn = SpawnLauncher(book)

    async def __aexit__(self, *exc: object) -> None:
        templates = [*self._templates.values()]
        async with contextlib.AsyncExitStack() as steps:
            for template in [*templates, *self._lost]:
                steps.push_async_callback(template.end_helpers)
            # Twice, for nobody else ends one whose end has failed; after one that has not it is nothing.
            for template in [*templates, *templates]:
                steps.push_async_callback(template.aclose)
            steps.push_async_callback(super().__aexit__, *exc)
            steps.push_async_callback(self._spawn.__aexit__, *exc)
        self._templates.clear()
        self._lost.clear()

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        kind = _Kind.of(spec)
        if spec.python is not None or kind in self._unforkable:
            return await self._spawn.start(spec)
        try:
            return await super().start(spec)
        except _Unforkable:
            return await self._spawn.start(spec)

    async def _start(self, spec: WorkerSpec, hold: Hold) -> None:
        try:
            return await self._fork_from_template(spec, hold)
        except _TemplateLost:
            pass
        # It died under us: once more with a new one, whose failure then counts.
        try:
            await self._fork_from_template(spec, hold)
        except _TemplateLost as exc:
            raise WorkerStartupError(
                f"the process that imports the adapter {spec.adapter!r} and forks its workers is lost: {exc}",
                details={"reason": str(exc), "adapter": spec.adapter},
            ) from exc

    async def _fork_from_template(self, spec: WorkerSpec, hold: Hold) -> None:
        template = await self._template(_Kind.of(spec), spec)
        try:
            await self._fork(template, spec, hold)
        finally:
            self._log_output(template, spec)

    async def _template(self, kind: _Kind, spec: WorkerSpec) -> _Template:
        lock = self._starting.setdefault(kind, anyio.Lock())
        async with lock:
            if kind in self._unforkable:
                raise _Unforkable
            template = self._templates.get(kind)
            if template is not None and not template.lost and template.alive():
                return template
            if template is not None:
                del self._templates[kind]
                why = self._with_output(template.why, template)
                _log.warning("the process that forks workers for %s is lost: %s", spec.adapter, why)
                if template.has_helpers:
                    self._lost.append(template)
                await template.aclose()
            try:
                template = _Template.start(spec, self._book)
            except (OSError, ValueError) as exc:
                raise WorkerStartupError(f"could not start a template: {exc}", details={"reason": str(exc)}) from exc
            try:
                answer = await self._introduce(template, spec)
                if "unforkable" in answer:
                    self._unforkable.add(kind)
                    _log.warning("%s can't be forked (%s): workers are spawned", spec.adapter, answer["unforkable"])
                    raise _Unforkable
            except BaseException:
                # Nobody else knows of it.
                try:
                    await template.aclose()
                finally:
                    await template.end_helpers()
                raise
            self._templates[kind] = template
            return template

    async def _introduce(self, template: _Template, spec: WorkerSpec) -> dict[str, Any]:
        """Have a template import the adapter, and log what that prints."""
        try:
            return await template.hello(spec)
        except _TemplateLost as exc:
            raise _TemplateLost(self._with_output(str(exc), template)) from exc
        finally:
            self._log_output(template, spec)

    def _log_output(self, template: _Template, spec: WorkerSpec) -> None:
        fields = {"pool": spec.pool, "worker_id": "import", "stream": "template"}
        clean = LineRedactor(self._redact)
        lines = [(clean(line), level) for line, level in map(unmarked, template.news())]
        WorkerOutput(spec.worker_output, f"{spec.pool} import", fields).put(lines)

    def _with_output(self, why: str, template: _Template) -> str:
        """Why a template is lost, and what it has said last."""
        clean = LineRedactor(self._redact)
        said = "\n".join(clean(unmarked(line)[0]) for line in template.output()[-_LAST_LINES:])
        return f"{why}; it said: {said}" if said else why

    @staticmethod
    async def _fork(template: _Template, spec: WorkerSpec, hold: Hold) -> None:
        descriptors = make_descriptors()
        try:
            answer, fds = await template.ask({"worker": spec.worker_id}, descriptors.for_worker)
        except BaseException:
            descriptors.close_all()
            raise
        try:
            if "error" in answer or len(fds) != 1:
                raise WorkerStartupError(
                    f"could not fork a worker: {answer.get('error', 'no descriptor came')}",
                    details={"reason": str(answer.get("error"))},
                )
            process = _platform.open_forked(answer["pid"], fds[0])
            try:
                hold(process, descriptors, _TemplateReaper(template, process.pid))
            except BaseException:
                process.close()
                fds.clear()
                raise
        except BaseException:
            descriptors.close_all()
            for fd in fds:
                _forks.close(fd)
            if "pid" in answer:
                # Its lifeline is cut, so it ends by itself; ask() bounds the wait for it.
                with anyio.CancelScope(shield=True):
                    await _TemplateReaper(template, answer["pid"]).reap()
            raise
        descriptors.started()
