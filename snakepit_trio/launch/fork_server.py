"""Workers as forks of a template process that has imported the adapter already.

The host's side. A template is started like a spawned worker, once for each kind of worker (adapter, environment,
directory); it answers over a Unix socket whose other end nobody else holds. For each worker the host sends the worker's
ends of four pipes and its number of the request; the template forks, and answers with the child's pid and a descriptor of it
(a pidfd), opened before anybody could have reaped it. The template never reaps a child before the host says so: until then the
child's process group can't be a stranger's.

The protocol of that socket: messages of 4 bytes of big-endian length and JSON, one after another; descriptors ride on the
first byte of a message.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from snakepit_trio.errors import WorkerStartupError

from .base import ExitStatus, Launcher, WorkerProcess, WorkerSpec
from .environment import import_path, worker_environment
from .process import LocalProcess, boot_message, make_descriptors
from .spawn import SpawnLauncher

__all__ = ["ForkServerLauncher"]

_log = logging.getLogger("snakepit_trio.launch")

#: How long a template may take to end once its lifeline is cut, in seconds.
_END_TIME = 2.0
_LONGEST = 1 << 20


class _TemplateLost(Exception):
    """The template has ended, or does not speak sense."""


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

    def __init__(self, popen: subprocess.Popen[bytes], channel: socket.socket, lifeline: int) -> None:
        self._popen = popen
        self._channel = channel
        self._lifeline = lifeline
        self._turn = anyio.Lock()
        self._received = b""
        self.lost = False

    @classmethod
    def start(cls, spec: WorkerSpec) -> _Template:
        """Start a template. It reads what it is to import from its lifeline."""
        lifeline_read, lifeline_write = os.pipe()
        ours, theirs = socket.socketpair()
        try:
            command = [
                sys.executable, "-m", "snakepit_trio.launch.template", "--run", spec.run_id,
                "--lifeline", str(lifeline_read), "--channel", str(theirs.fileno()),
            ]  # fmt: skip
            environment = worker_environment(spec)
            environment.pop("SNAKEPIT_WORKER_ID", None)
            package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            rest = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{rest}{os.pathsep}{package}" if rest else package
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(lifeline_read, theirs.fileno()),
                env=environment,
                cwd=spec.cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(lifeline_write)
            ours.close()
            raise
        finally:
            os.close(lifeline_read)
            theirs.close()
        ours.setblocking(False)
        return cls(popen, ours, lifeline_write)

    async def ask(self, question: dict[str, Any], fds: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
        """Send a question, wait for its answer and the descriptors with it. One at a time.

        A cancellation waits for the answer first: the template would be out of step, or a child without an owner. An answer
        takes as long as a fork does, for the template does nothing else.

        Raises:
            _TemplateLost: The template has ended.
        """
        async with self._turn:
            if self.lost:
                raise _TemplateLost
            try:
                with anyio.CancelScope(shield=True):
                    await self._send(question, fds)
                    answer = await self._receive()
            except (OSError, ValueError, EOFError) as exc:
                self.lost = True
                raise _TemplateLost(str(exc)) from exc
            return answer

    async def hello(self, spec: WorkerSpec) -> dict[str, Any]:
        """Tell it what to import, and wait until it has. A cancellation makes the template useless.

        Raises:
            _TemplateLost: It has ended while it imported.
        """
        async with self._turn:
            try:
                await self._send({"adapter": spec.adapter, "path": import_path(spec)}, ())
                answer, _ = await self._receive()
            except (OSError, ValueError, EOFError) as exc:
                self.lost = True
                raise _TemplateLost(str(exc)) from exc
            except BaseException:
                self.lost = True
                raise
            return answer

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
                        raise ValueError("the template does not speak sense")
                    if len(self._received) >= 4 + size:
                        body, self._received = self._received[4 : 4 + size], self._received[4 + size :]
                        return json.loads(body), fds
                try:
                    data, more, _, _ = socket.recv_fds(self._channel, 65536, 8, socket.MSG_CMSG_CLOEXEC)
                except BlockingIOError:
                    await anyio.wait_readable(self._channel)
                    continue
                fds += more
                if not data:
                    raise EOFError("the template has ended")
                self._received += data
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    async def aclose(self) -> None:
        """End it. Its workers go on: each has a lifeline of its own."""
        self.lost = True
        with anyio.CancelScope(shield=True):
            self._channel.close()
            os.close(self._lifeline)
            if self._popen.poll() is None:
                pidfd = os.pidfd_open(self._popen.pid)
                try:
                    with anyio.move_on_after(_END_TIME):
                        await anyio.wait_readable(pidfd)
                finally:
                    os.close(pidfd)
                if self._popen.poll() is None:
                    self._popen.kill()
            self._popen.wait()


class _TemplateReaper:
    """The template as the parent of a forked worker."""

    def __init__(self, template: _Template, pid: int) -> None:
        self._template = template
        self._pid = pid

    def alive(self) -> bool:
        """Whether the worker's parent is there still, and so the worker not reaped by anybody else."""
        return not self._template.lost

    async def reap(self) -> ExitStatus:
        try:
            answer, _ = await self._template.ask({"reap": self._pid})
        except _TemplateLost:
            return ExitStatus()  # The system has reaped it, and keeps to itself how it ended.
        return ExitStatus(code=answer.get("code"), signal=answer.get("signal"))


class ForkServerLauncher(Launcher):
    """Forks workers from templates; starts those that can't be forked as new interpreters instead."""

    def __init__(self) -> None:
        self._templates: dict[_Kind, _Template] = {}
        self._starting: dict[_Kind, anyio.Lock] = {}
        self._unforkable: set[_Kind] = set()
        self._spawn = SpawnLauncher()

    async def __aexit__(self, *exc: object) -> None:
        for template in self._templates.values():
            await template.aclose()
        self._templates.clear()

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        kind = _Kind.of(spec)
        if spec.python is not None or kind in self._unforkable:
            return await self._spawn.start(spec)
        try:
            template = await self._template(kind, spec)
            if template is None:
                return await self._spawn.start(spec)
            return await self._fork(template, spec)
        except _TemplateLost:
            # It died under us: once more with a new one, whose failure then counts.
            try:
                template = await self._template(kind, spec)
                return await (self._spawn.start(spec) if template is None else self._fork(template, spec))
            except _TemplateLost as exc:
                raise WorkerStartupError(
                    f"the process that forks workers ended while it imported {spec.adapter!r}",
                    details={"reason": "the template ended", "adapter": spec.adapter},
                ) from exc

    async def _template(self, kind: _Kind, spec: WorkerSpec) -> _Template | None:
        lock = self._starting.setdefault(kind, anyio.Lock())
        async with lock:
            if kind in self._unforkable:
                return None
            template = self._templates.get(kind)
            if template is not None and not template.lost:
                return template
            if template is not None:
                del self._templates[kind]
                await template.aclose()
            try:
                template = _Template.start(spec)
            except OSError as exc:
                raise WorkerStartupError(f"could not start a template: {exc}", details={"reason": str(exc)}) from exc
            try:
                answer = await template.hello(spec)
            except BaseException:
                await template.aclose()
                raise
            if "unforkable" in answer:
                self._unforkable.add(kind)
                await template.aclose()
                _log.warning("%s can't be forked (%s): workers are spawned", spec.adapter, answer["unforkable"])
                return None
            self._templates[kind] = template
            return template

    async def _fork(self, template: _Template, spec: WorkerSpec) -> WorkerProcess:
        descriptors = make_descriptors()
        try:
            boot = boot_message(spec)
            answer, fds = await template.ask({"worker": spec.worker_id}, descriptors.for_worker)
        except BaseException:
            descriptors.close_all()
            raise
        descriptors.close(*descriptors.for_worker)
        if "error" in answer or len(fds) != 1:
            descriptors.close_all()
            for fd in fds:
                os.close(fd)
            raise WorkerStartupError(
                f"could not fork a worker: {answer.get('error', 'no descriptor came')}",
                details={"reason": str(answer.get("error"))},
            )
        reaper = _TemplateReaper(template, answer["pid"])
        group_is_safe: Callable[[], bool] = reaper.alive
        process = LocalProcess(answer["pid"], fds[0], descriptors, boot, reaper, group_is_safe=group_is_safe)
        try:
            await process.send_boot()
            await anyio.lowlevel.checkpoint()
        except BaseException:
            await process.aclose()
            raise
        return process
