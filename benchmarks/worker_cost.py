"""What a call costs in the worker: one worker process, driven with frames over its socket, without a pool.

Keeps so many calls in the worker's socket at a time (the depth), and reads from /proc what the worker spent on them: CPU
time of all its threads and context switches; and how long a call takes. Then chunks of a stream. Workers of each kind take
turns, round after round; the figures are medians over the rounds.

    python benchmarks/worker_cost.py [--rounds 3] [--only sync] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
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
from snakepit_trio.wire import codec, frame_reading, frame_writing, frames
from snakepit_trio.wire.generated.snakepit.v1 import HandshakeRequest, HandshakeResponse
from snakepit_trio.wire.transports import make_wire

SERVICE = "/snakepit.v1.WorkerService/"
DEPTHS = (1, 2, 8, 32)
CREDITS = 256


class Plain(sp.Adapter):
    """Nothing async: the main thread does everything."""

    @sp.tool
    def echo(self, data: bytes) -> bytes:
        """What every contender of ``benchmarks/calls.py`` runs."""
        return data

    @sp.tool(inline=True)
    def echo_inline(self, data: bytes) -> bytes:
        """The same, promised to be short."""
        return data

    @sp.tool
    def count(self, n: int) -> Iterator[int]:
        """Small chunks."""
        yield from range(n)


class Mixed(Plain):
    """Some async: the tools have an event loop."""

    @sp.tool
    async def echo_async(self, data: bytes) -> bytes:
        return data

    @sp.tool
    async def count_async(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number


#: What is measured: the worker's options, its tools, its generators.
KINDS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "sync": ({"adapter": "worker_cost:Plain"}, ["echo", "echo_inline"], ["count"]),
    "2 threads": ({"adapter": "worker_cost:Plain", "threads": 2}, ["echo", "echo_inline"], ["count"]),
    "trio": ({"adapter": "worker_cost:Mixed", "worker_backend": "trio"}, ["echo", "echo_async"], ["count_async"]),
    "asyncio": ({"adapter": "worker_cost:Mixed", "worker_backend": "asyncio"}, ["echo", "echo_async"], ["count_async"]),
}


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
            self.rpc.send(frame_writing.encode(call))

        def arrived(message: bytes) -> None:
            frame = frame_reading.decode_worker_frame(message)
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
                    self.rpc.send(frame_writing.encode(frames.Credit(id, taken)))
                    taken = 0
            else:
                over.set()

        self.arrived = arrived
        before, at = Spent(self.pid), time.perf_counter()
        payload = codec.encode({"n": count})
        self.rpc.send(frame_writing.encode(frames.Call(id, tool, "", payload, 60_000_000, 1, True, CREDITS)))
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
async def peer(**options: Any) -> AsyncIterator[tuple[Peer, dict[str, int]]]:
    """A worker process and the host's end of its exchange; also the numbers of its tools."""
    with tempfile.TemporaryDirectory() as directory:
        spec = WorkerSpec(worker_id="w", run_id="cost", pool="p", token="t", socket_dir=directory, **options)
        process = await SpawnLauncher().start(spec)
        try:
            report = await process.report()
            if not report.address:
                raise SystemExit(report.message)
            async with make_wire("trio") as wire:
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


async def measure(kind: str, calls: int) -> dict[str, dict[str, float]]:
    """One round of one kind of worker."""
    options, tools, streams = KINDS[kind]
    results: dict[str, dict[str, float]] = {}
    async with peer(**options) as (host, numbers):
        for name in tools:
            await host.calls(numbers[name], 1000, 8)
            for depth in DEPTHS:
                results[f"{kind}: {name}, depth {depth}"] = await host.calls(numbers[name], calls, depth)
        for name in streams:
            await host.chunks(numbers[name], 10_000)
            results[f"{kind}: {name}, chunks"] = await host.chunks(numbers[name], 5 * calls)
    return results


async def main(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(options.rounds):
        rounds.append({})
        for kind in options.only or KINDS:
            rounds[-1].update(await measure(kind, options.calls))
    results = {
        name: {key: statistics.median(one[name][key] for one in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }
    for name, figures in results.items():
        latency = f"{figures['p50_us']:6.0f} us p50" if "p50_us" in figures else ""
        print(
            f"{name:34} {figures['cpu_us']:6.1f} us CPU  {figures['switches']:5.2f} switches  "
            f"{figures['per_second']:8.0f}/s {latency}"
        )
    print(
        f"for each call or chunk, in one worker; medians of {options.rounds} rounds; {platform.system()} "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(KINDS))
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    figures = trio.run(main, asked)
    if asked.json:
        asked.json.write_text(json.dumps({"figures": figures, "arguments": sys.argv[1:]}, indent=2) + "\n")
