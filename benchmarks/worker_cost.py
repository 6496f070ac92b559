"""What a call costs in the worker: one worker process, driven with frames over its socket, without a pool.

Keeps so many calls in the worker's socket at a time (the depth), and reads from /proc what the worker spent on them: CPU
time of all its threads, context switches, latency. Then chunks of a stream.

    python benchmarks/worker_cost.py [--adapter benchmarks.worker_cost] [--tools echo quick later] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

import snakepit_trio as sp
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.launch.spawn import SpawnLauncher
from snakepit_trio.wire import codec, frames
from snakepit_trio.wire.generated.snakepit.v1 import HandshakeRequest, HandshakeResponse
from snakepit_trio.wire.transports import make_wire

SERVICE = "/snakepit.v1.WorkerService/"
DEPTHS = (1, 2, 8, 32)
CREDITS = 256


@sp.tool
def echo(data: bytes) -> bytes:
    """What every contender of ``benchmarks/calls.py`` runs."""
    return data


@sp.tool
def count(n: int) -> Iterator[int]:
    """Small chunks."""
    yield from range(n)


class Spent:
    """What a process has used so far: seconds of CPU, and context switches it made itself or was made to."""

    def __init__(self, pid: int) -> None:
        self.cpu = 0.0
        self.switches = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            place = Path(f"/proc/{pid}/task/{task}")
            self.cpu += int((place / "schedstat").read_text().split()[0]) / 1e9
            for line in (place / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    self.switches += int(line.split()[1])


class Peer:
    """The host's end of an exchange."""

    def __init__(self, connection: Any, pid: int) -> None:
        self.pid = pid
        self.arrived: Any = None
        self.rpc = connection.rpc(SERVICE + "Exchange", on_message=self._message, on_end=lambda *end: None)
        self.ids = iter(range(1, 1 << 60))

    def _message(self, message: bytes) -> None:
        self.arrived(message)

    async def calls(self, tool: int, count: int, depth: int) -> dict[str, float]:
        """Run so many calls, so many at a time."""
        payload = codec.encode({"data": b"x" * 64})
        over = trio.Event()
        begun: dict[int, float] = {}
        laps: list[float] = []

        def send() -> None:
            call = frames.Call(next(self.ids), tool, "", payload, 60_000_000, 1)
            begun[call.id] = time.perf_counter()
            self.rpc.send(frames.encode(call))

        def arrived(message: bytes) -> None:
            frame = frames.decode_worker_frame(message)
            assert isinstance(frame, frames.Reply) and frame.error is None, frame
            laps.append(time.perf_counter() - begun.pop(frame.id))
            if len(laps) + len(begun) < count:
                send()
            elif not begun:
                over.set()

        self.arrived = arrived
        before, at = Spent(self.pid), time.perf_counter()
        for _ in range(depth):
            send()
        await over.wait()
        return self._figures(before, at, count) | {"p50_us": sorted(laps)[len(laps) // 2] * 1e6}

    async def chunks(self, tool: int, count: int) -> dict[str, float]:
        """Run a stream of so many chunks."""
        over = trio.Event()
        id = next(self.ids)
        taken = 0

        def arrived(message: bytes) -> None:
            nonlocal taken
            # The first byte tells a Chunk from a Reply; the rest is not this benchmark's to pay for.
            if message[0] == 0x12:
                taken += 1
                if taken == CREDITS // 2:
                    self.rpc.send(frames.encode(frames.Credit(id, taken)))
                    taken = 0
            else:
                over.set()

        self.arrived = arrived
        before, at = Spent(self.pid), time.perf_counter()
        payload = codec.encode({"n": count})
        self.rpc.send(frames.encode(frames.Call(id, tool, "", payload, 60_000_000, 1, True, CREDITS)))
        await over.wait()
        return self._figures(before, at, count)

    def _figures(self, before: Spent, at: float, count: int) -> dict[str, float]:
        spent, after = time.perf_counter() - at, Spent(self.pid)
        return {
            "per_second": count / spent,
            "cpu_us": (after.cpu - before.cpu) / count * 1e6,
            "switches": (after.switches - before.switches) / count,
        }


@asynccontextmanager
async def peer(adapter: str, **options: Any) -> AsyncIterator[tuple[Peer, dict[str, int]]]:
    """A worker process and the host's end of its exchange; also the numbers of its tools."""
    with tempfile.TemporaryDirectory() as directory:
        spec = WorkerSpec(
            worker_id="w", run_id="cost", pool="p", adapter=adapter, token="t", socket_dir=directory, **options
        )
        process = await SpawnLauncher().start(spec)
        try:
            report = await process.report()
            if not report.address:
                raise SystemExit(report.message)
            async with make_wire("trio", "trio") as wire:
                connection = await wire.connect(report.address, token="t", max_message=1 << 26)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(connection.serve)
                    request = bytes(HandshakeRequest(protocol_version=1, protocol_version_min=1))
                    answer = HandshakeResponse.parse(await connection.unary(SERVICE + "Handshake", request))
                    tools = {tool.name: number for number, tool in enumerate(answer.tools, 1)}
                    yield Peer(connection, report.pid), tools
                    connection.close()
        finally:
            await process.aclose()


async def main(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    async with peer(options.adapter, threads=options.threads) as (host, tools):
        for name in [name for name in options.tools if name in tools]:
            await host.calls(tools[name], 1000, 8)
            for depth in DEPTHS:
                figures = await host.calls(tools[name], options.calls, depth)
                results[f"{name}, depth {depth}"] = figures
        for name in [name for name in options.streams if name in tools]:
            await host.chunks(tools[name], 10_000)
            results[f"{name}, chunks"] = await host.chunks(tools[name], 5 * options.calls)
    for name, figures in results.items():
        latency = f"{figures['p50_us']:5.0f} us p50" if "p50_us" in figures else ""
        print(
            f"{name:22} {figures['cpu_us']:6.1f} us CPU  {figures['switches']:5.2f} switches  "
            f"{figures['per_second']:8.0f}/s  {latency}"
        )
    print(
        f"of one worker, each; {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}"
    )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="worker_cost")
    parser.add_argument("--tools", nargs="*", default=["echo"])
    parser.add_argument("--streams", nargs="*", default=["count"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    figures = trio.run(main, asked)
    if asked.json:
        asked.json.write_text(json.dumps({"figures": figures, "arguments": sys.argv[1:]}, indent=2) + "\n")
