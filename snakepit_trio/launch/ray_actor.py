"""What runs on a node of a Ray cluster: an actor that starts one worker with the launcher of its machine.

The actor's process holds the worker's lifeline, so the worker ends with it: when Ray ends the actor, when the driver that
made it is gone, when the node's agent dies. Calls never come this way; the host connects to the worker itself.
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
    """A worker was started, or could not be."""

    pid: int = 0
    #: The address of its node.
    node: str = ""
    #: Why it could not be started.
    failure: str = ""


class WorkerActor:
    """One worker on this node. All methods run in the actor's asyncio loop."""

    def __init__(self) -> None:
        self._launcher = SpawnLauncher()
        self._process: WorkerProcess | None = None
        self._settled = asyncio.Event()

    async def start(self, spec: WorkerSpec) -> Placed:
        """Start it, listening on this node's address."""
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
        """What it says when it is ready, or can't be."""
        process = await self._started()
        return Report() if process is None else await process.report()

    async def receive(self, stream: Literal["stdout", "stderr"]) -> bytes:
        """What it writes next; empty at the end."""
        process = await self._started()
        if process is None:
            return b""
        return await (process.stdout if stream == "stdout" else process.stderr).receive()

    async def signal(self, kill: bool) -> None:
        """SIGKILL or SIGTERM to its process group."""
        process = await self._started()
        if process is not None:
            if kill:
                process.kill()
            else:
                process.terminate()

    async def cpu_time(self) -> float | None:
        """CPU time that it has used."""
        process = await self._started()
        return None if process is None else await process.cpu_time()

    async def wait(self) -> tuple[ExitStatus, bytes | None]:
        """Wait for its end. Returns how it ended, and the table of the calls that it had begun."""
        process = await self._started()
        if process is None:
            return ExitStatus(code=1), None
        status = await process.wait()
        return status, getattr(process, "marks", None)

    async def _started(self) -> WorkerProcess | None:
        await self._settled.wait()
        return self._process
