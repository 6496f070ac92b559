"""The actor on a node of a Ray cluster that starts one worker with its machine's launcher.

The actor's process holds the worker's lifeline, so the worker ends with it: when Ray ends the actor, when the driver
that created it is gone, when the node's agent dies. Calls never go through it; the host connects to the worker
directly.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import attrs

from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.wire.startup import Report

from .base import ExitStatus, WorkerProcess, WorkerSpec
from .spawn import SpawnLauncher

__all__ = ["Placed", "WorkerActor"]


@attrs.frozen
class Placed:
    """The result of a start."""

    pid: int = 0
    #: The address of the node.
    node: str = ""
    #: The reason of a failed start.
    failure: str = ""


class WorkerActor:
    """One worker on this node. All methods run in the actor's asyncio loop."""

    def __init__(self) -> None:
        self._launcher = SpawnLauncher()
        self._process: WorkerProcess | None = None
        self._settled = asyncio.Event()

    async def start(self, spec: WorkerSpec) -> Placed:
        """Start the worker, listening on this node's address."""
        import ray

        node = ray.util.get_node_ip_address()
        try:
            self._process = await self._launcher.start(attrs.evolve(spec, bind=node))
        except WorkerStartupError as exc:
            return Placed(node=node, failure=exc.message)
        finally:
            self._settled.set()
        return Placed(self._process.pid, node)

    async def report(self) -> Report:
        """Return the worker's report."""
        process = await self._started()
        return Report() if process is None else await process.report()

    async def receive(self, stream: Literal["stdout", "stderr"]) -> bytes:
        """Return the next bytes of a stream; empty at the end."""
        process = await self._started()
        if process is None:
            return b""
        return await (process.stdout if stream == "stdout" else process.stderr).receive()

    async def signal(self, kill: bool) -> None:
        """Send SIGKILL or SIGTERM to the process group."""
        process = await self._started()
        if process is not None:
            if kill:
                process.kill()
            else:
                process.terminate()

    async def cpu_time(self) -> float | None:
        """Return the worker's CPU time."""
        process = await self._started()
        return None if process is None else await process.cpu_time()

    async def wait(self) -> tuple[ExitStatus, bytes | None]:
        """Wait for the worker's end. Returns its exit status, and its begun table."""
        process = await self._started()
        if process is None:
            return ExitStatus(code=1), None
        status = await process.wait()
        return status, getattr(process, "marks", None)

    async def _started(self) -> WorkerProcess | None:
        await self._settled.wait()
        return self._process
