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

# For the template, which runs on the same interpreter.
_private_names.require("fork")

_log = logging.getLogger("snakepit_trio.launch")

#: Seconds. The time for a template to end after its lifeline was cut.
_END_TIME = 2.0
#: Seconds. The time for an answer of a template that has imported its adapter.
_ANSWER_TIME = 10.0
#: The bytes of a template's output that are logged, and the lines shown in an error.
_OUTPUT = 64 * 1024
_LAST_LINES = 20
_LONGEST = 1 << 20


class _TemplateLost(Exception):
    """The template has ended, answers malformed messages, or does not answer."""


class _Unforkable(Exception):
    """The process that has imported the adapter can't be forked."""


@attrs.frozen
class _Kind:
    """The properties that all workers of one template share."""

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
        """Start a template. :meth:`hello` sends what it has to import.

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
                # The import's output goes to an unnamed file, because a pipe would need a reader meanwhile.
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
                with contextlib.suppress(OSError):  # It has already ended.
                    _platform.arm_lifeline(lifeline_read, popen.pid)
                book.begun(name, popen.pid)
                helpers = Helpers(popen.pid, run_id=spec.run_id, pool=spec.pool, book=book)
                made = cls(popen, ours, lifeline_write, output, lambda: book.ended(name), helpers)
            # From here on they belong to the template, and are closed at its end.
            kept.pop_all()
            return made

    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._closed and self._popen.poll() is None

    def output(self, begin: int = 0) -> list[str]:
        """Return the lines that it has printed from this byte on, at most the last ones; none once it is closed."""
        if self._closed:
            return []
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _OUTPUT, max(begin, size - _OUTPUT))
        return [printable(line) for line in data.decode(errors="backslashreplace").splitlines()]

    def news(self) -> list[str]:
        """Return the lines since the last look; none once it is closed."""
        size = 0 if self._closed else os.fstat(self._output).st_size
        begin, self._seen = self._seen, max(size, self._seen)
        return self.output(begin) if size > begin else []

    async def ask(self, question: dict[str, Any], fds: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a question, and return the answer with its descriptors. One question at a time.

        A cancellation waits for the answer first, because otherwise the answers would be out of step, or a child would
        have no owner. An answer takes as long as a fork, because the template does nothing else; one that takes much
        longer never comes.

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
                # The state of the exchange is unknown.
                self.lose()
                raise
            return answer

    async def hello(self, spec: WorkerSpec) -> dict[str, Any]:
        """Send what the template has to import, and wait until it has. A cancellation makes the template unusable.

        Raises:
            _TemplateLost: It ended during the import.
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
            # Also after a cancellation at the lock, because no other code knows this template yet.
            self.lose()
            raise
        found = answer.get("helpers")
        self._helpers.told(found if isinstance(found, list) else ())
        self._told = True
        return answer

    def lose(self) -> None:
        """Mark it as unusable."""
        self.lost = True
        if self.alive():
            if not self._told:
                # It may be importing.
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
        """End the template. Its workers continue; each has its own lifeline."""
        if self._closed:
            return
        self._closed = self.lost = True
        # Each step runs even if another one fails.
        async with contextlib.AsyncExitStack() as steps:
            steps.enter_context(anyio.CancelScope(shield=True))
            # Idempotent: it has been closed unless :meth:`_hang_up` has failed.
            steps.callback(self._channel.close)
            steps.push_async_callback(self._note_end)
            steps.callback(_forks.close, self._output)
            # Cut last, because it kills a living template.
            steps.callback(_forks.close, self._lifeline)
            steps.push_async_callback(self._see_off)
            steps.push_async_callback(self._hang_up)

    async def _hang_up(self) -> None:
        # Tasks that wait for an answer are woken. Closing the descriptor under a waiter would leave it waiting, and reuse
        # the number.
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
        """Return whether its import has started processes."""
        return len(self._helpers) > 0

    async def end_helpers(self) -> None:
        """End the processes that its import has started, which its workers may have used. The template has been closed."""
        await self._helpers.end(told=self._told)

    async def _ended(self) -> bool:
        """Wait a moment for its end; return whether it has ended and is reaped."""
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
            return ExitStatus()  # The system has reaped it, and its exit status is lost.
        return ExitStatus(code=answer.get("code"), signal=answer.get("signal"))


class ForkServerLauncher(LocalLauncher):
    """Forks workers from templates; workers that can't be forked are started as new interpreters."""

    def __init__(self, book: ProcessBook | None = None, redact: Callable[[str], str] = redact) -> None:
        super().__init__(book)
        self._redact = redact
        self._templates: dict[_Kind, _Template] = {}
        self._starting: dict[_Kind, anyio.Lock] = {}
        self._unforkable: set[_Kind] = set()
        # Lost templates, whose workers continue, and with them the processes that the import has started.
        self._lost: list[_Template] = []
        self._spawn = SpawnLauncher(book)

    async def __aexit__(self, *exc: object) -> None:
        templates = [*self._templates.values()]
        async with contextlib.AsyncExitStack() as steps:
            for template in [*templates, *self._lost]:
                steps.push_async_callback(template.end_helpers)
            # Twice, because no other code ends a template whose end has failed; the second time usually does nothing.
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
        # It died during the request: try again with a new one, whose failure then counts.
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
                # No other code knows of it.
                try:
                    await template.aclose()
                finally:
                    await template.end_helpers()
                raise
            self._templates[kind] = template
            return template

    async def _introduce(self, template: _Template, spec: WorkerSpec) -> dict[str, Any]:
        """Have a template import the adapter, and log the import's output."""
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
        """Return the reason why a template is lost, with its last output."""
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
                # Its lifeline is cut, so it ends by itself; ask() bounds the wait.
                with anyio.CancelScope(shield=True):
                    await _TemplateReaper(template, answer["pid"]).reap()
            raise
        descriptors.started()
