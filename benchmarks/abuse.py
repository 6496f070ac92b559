"""What one abuser costs the others: memory, the event loop's time, a bystander's calls.

python benchmarks/abuse.py [--backend trio,asyncio] [--only NAME,...] [--seconds 3] [--size BYTES] [--json FILE]

Each abuse has a runtime of its own with two workers, and a bystander: a client of its bridge, in another process, that makes one
plain call after the other, first in quiet and then while the abuse goes on. Noted are

- memory: by how much the largest host, worker and client process grows at its peak, as the kernel counts it (VmHWM);
- the longest pass of the host's event loop: so long it has done nothing else, not even read a heartbeat. Beside it the CPU time
  that the pass has used: on a busy machine a pass also waits for a core;
- the bystander's 99th percentile and longest call, beside those of its quiet time, and how many of its calls failed;
- what ended: workers and connections, and what the abuser was told.

The abuses are in abuse_attacks.py. Where one is many calls, the bystander's are in a pool of their own: who calls more often waits
longer in any queue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import attrs
import psutil
import sniffio
import trio

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, ROOT)

import snakepit_trio as sp  # noqa: E402
from benchmarks.abuse_attacks import IN_HOST, MIB, Ended  # noqa: E402

ATTACKS = str(Path(__file__).with_name("abuse_attacks.py"))
EVIL, ASYNC, BASIC = "tests.adapters.evil", "tests.adapters.asynchronous", "tests.adapters.basic"
#: How long a call of the bystander may take; and how often the driver looks at the processes, in seconds.
PATIENCE, EVERY = 10.0, 0.01


@attrs.frozen
class Abuse:
    """One kind.

    Attributes:
        what: For the table.
        adapter: What the abused pool runs.
        call: The bystander's tool and arguments.
        apart: The bystander's calls are in a pool of their own.
        size: Of what is sent, in bytes or parts.
    """

    what: str
    adapter: str = EVIL
    call: tuple[str, dict[str, Any]] = ("fine", {})
    apart: bool = False
    size: int = 0


ADD = ("add", {"a": 1, "b": 2})
ABUSES = {
    "chunk_beyond_credit": Abuse("chunks beyond their credit", size=MIB),
    "unread_stream": Abuse("an unread stream, 20 MB chunks", BASIC, ADD, size=20 * 10**6),
    "host_call_arguments": Abuse("100 host calls at once, 8 MiB each", ASYNC, ("sync_add", {"a": 1, "b": 2}), size=8 * MIB),
    "unread_answers": Abuse("400 unread answers of 4 MiB", apart=True, size=4 * MIB),
    "large_requests": Abuse("100 requests at once, 16 MiB each", apart=True, size=16 * MIB),
    "hard_schema": Abuse("a schema that is hard to check", "benchmarks.abuse_tools"),
    "nested_arguments": Abuse("arguments nested 100 000 deep"),
    "nested_result": Abuse("a result nested 100 000 deep", apart=True),
    "tiny_values": Abuse("60 million small numbers in a request", size=60_000_000),
    "many_blocks": Abuse("300 000 blocks in one reply", size=300_000),
    "one_byte_frames": Abuse("one-byte frames on 20 connections"),
    "registrations": Abuse("registrations on 40 connections"),
    "half_requests": Abuse("200 half requests for metrics"),
}  # fmt: skip


# ---- the host ------------------------------------------------------------------------------------


class Passes:
    """The passes of the event loop, from the end of one wait for I/O to the next."""

    def __init__(self) -> None:
        self.longest, self.cpu_of_longest, self.most_cpu = 0.0, 0.0, 0.0
        self._began = time.perf_counter(), time.thread_time()

    def after_io_wait(self, timeout: float) -> None:
        self._began = time.perf_counter(), time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        wall, cpu = time.perf_counter() - self._began[0], time.thread_time() - self._began[1]
        if wall > self.longest:
            self.longest, self.cpu_of_longest = wall, cpu
        self.most_cpu = max(self.most_cpu, cpu)

    @contextmanager
    def watched(self) -> Iterator[None]:
        self.after_io_wait(0)
        if sniffio.current_async_library() == "trio":
            trio.lowlevel.add_instrument(self)  # type: ignore[arg-type]
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)  # type: ignore[arg-type]
            return
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        select = selector.select

        def wait(timeout: float | None = None) -> Any:
            self.before_io_wait(0)
            try:
                return select(timeout)
            finally:
                self.after_io_wait(0)

        selector.select = wait
        try:
            yield
        finally:
            del selector.select


def ask_driver(record: dict[str, Any]) -> None:
    """Tell the driver something, and wait until it has taken note."""
    print(json.dumps(record), flush=True)
    sys.stdin.readline()


async def measure(name: str, backend: str, quiet: float, seconds: float, size: int) -> None:
    abuse, ended = ABUSES[name], Counter[str]()
    env = {"PYTHONPATH": ROOT}
    pools = [
        sp.PoolConfig(name="default", adapter=abuse.adapter, size=2, env=env, max_queue=10_000),
        sp.PoolConfig(name="apart", adapter=EVIL, size=1, env=env),
    ]
    metrics = sp.MetricsConfig() if name == "half_requests" else None
    config = sp.RuntimeConfig(pools=pools, bridge=sp.BridgeConfig(), metrics=metrics)
    async with sp.open_runtime(config) as runtime, anyio.create_task_group() as nursery:
        assert runtime.bridge is not None
        address = runtime.bridge.address
        os.environ.update(SNAKEPIT_TOKEN=runtime.bridge.token, PYTHONPATH=ROOT)
        tool, params = abuse.call
        command = [sys.executable, __file__, "--as-bystander", backend, address, "apart" if abuse.apart else "default"]
        async with await anyio.open_process([*command, tool, json.dumps(params)], stderr=None) as bystander:
            assert bystander.stdout is not None
            assert bystander.stdin is not None
            await bystander.stdout.receive()
            await anyio.sleep(quiet)
            nursery.start_soon(_count_ends, runtime, ended)
            passes = Passes()
            ask_driver({"phase": "begin"})
            began = time.monotonic()
            with passes.watched():
                if name in IN_HOST:
                    with anyio.move_on_after(seconds):
                        await IN_HOST[name](runtime, size, ended)
                else:
                    where = runtime.metrics.address if runtime.metrics is not None else address
                    command = [sys.executable, ATTACKS, name, str(where), str(seconds), backend, str(size)]
                    done = await anyio.run_process(command, stderr=None)
                    ended.update(json.loads(done.stdout))
            until = time.monotonic()
            await bystander.stdin.aclose()
            text = b"".join([data async for data in bystander.stdout])
        nursery.cancel_scope.cancel()
        ask_driver({
            "phase": "end",
            "loop": {"longest_s": passes.longest, "cpu_of_longest_s": passes.cpu_of_longest, "most_cpu_s": passes.most_cpu},
            "bystander": _calls(json.loads(text), began, until),
            "ended": dict(ended),
        })  # fmt: skip


async def _count_ends(runtime: sp.Runtime, ended: Ended) -> None:
    async with runtime.events.subscribe("worker.gone", "bridge.client_expelled") as events:
        async for event in events:
            which = "worker" if event.name == "worker.gone" else "connection"
            ended[f"{which}: {event.metadata['reason']}"] += 1


def _calls(calls: list[tuple[float, float, str]], began: float, until: float) -> dict[str, Any]:
    """What became of the calls before the abuse, and of those that were under way at some moment of it."""
    found: dict[str, Any] = {}
    for phase, first, last in (("quiet", 0.0, began), ("abused", began, until)):
        its = [call for call in calls if (call[0] + call[1] > first and call[0] < last)]
        if phase == "quiet":
            its = [call for call in its if call[0] + call[1] <= began]
        taken = sorted(seconds for _, seconds, code in its if not code)
        found[phase] = {
            "calls": len(its),
            "p99_s": taken[int(len(taken) * 0.99)] if taken else None,
            "longest_s": taken[-1] if taken else None,
            "failed": dict(Counter(code for _, _, code in its if code)),
        }
    return found


# ---- the bystander -------------------------------------------------------------------------------


async def bystander(address: str, pool: str, tool: str, params: dict[str, Any]) -> None:
    """Make one call after the other until the standard input ends; print when each began, how long it took, and its error."""
    calls: list[tuple[float, float, str]] = []
    over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        over.set()

    waiting = threading.Thread(target=wait_for_end)
    waiting.start()
    async with sp.connect(address, pool=pool) as client:
        for _ in range(50):
            await client.execute(tool, params)
        print("ready", flush=True)
        while not over.is_set():
            code, began = "", time.monotonic()
            try:
                await client.execute(tool, params, timeout=PATIENCE)
            except sp.SnakepitError as exc:
                code = exc.code
            calls.append((began, time.monotonic() - began, code))
            await anyio.sleep(0.001)
    waiting.join()
    print(json.dumps(calls))


# ---- the driver ----------------------------------------------------------------------------------


class Memory:
    """The peaks of all processes below one, by what they are."""

    def __init__(self, host: int) -> None:
        self.host = host
        self.base: dict[str, int] = {}
        self.peak: dict[str, int] = {}

    def _role(self, pid: str) -> str:
        if int(pid) == self.host:
            return "host"
        command = Path(f"/proc/{pid}/cmdline").read_text()
        return "client" if "--as-bystander" in command or ATTACKS in command else "worker"

    def _sizes(self, field: str) -> Iterator[tuple[str, str, int]]:
        for pid in [str(self.host), *(str(child.pid) for child in psutil.Process(self.host).children(recursive=True))]:
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith(field):
                        yield pid, self._role(pid), int(line.split()[1]) * 1024

    def begin(self) -> None:
        """What they have now is what growth is counted from."""
        for pid, role, size in self._sizes("VmRSS"):
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            self.base[role] = max(self.base.get(role, 0), size)
        self.peak = dict(self.base)

    def look(self) -> None:
        for _, role, size in self._sizes("VmHWM"):
            self.peak[role] = max(self.peak.get(role, 0), size)

    def growth(self) -> dict[str, int]:
        return {role: max(self.peak[role] - size, 0) for role, size in self.base.items()}


def drive(name: str, backend: str, quiet: float, seconds: float, size: int) -> dict[str, Any]:
    """One abuse, in processes of its own."""
    command = [sys.executable, __file__, "--as-host", name, backend, str(quiet), str(seconds), str(size)]
    host = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert host.stdin is not None
    assert host.stdout is not None
    memory, record, lines = Memory(host.pid), {}, host.stdout
    told = threading.Event()
    said: list[str] = []

    def listen() -> None:
        for line in lines:
            said.append(line)
            told.set()
        told.set()

    listening = threading.Thread(target=listen)
    listening.start()
    try:
        while listening.is_alive():
            told.wait(EVERY)
            if memory.base:
                memory.look()
            while said:
                record = json.loads(said.pop(0))
                if record["phase"] == "begin":
                    memory.begin()
                host.stdin.write("\n")
                host.stdin.flush()
            told.clear()
    finally:
        if host.poll() is None and sys.exc_info()[0] is not None:
            host.send_signal(signal.SIGTERM)
        host.stdin.close()
        listening.join()
        host.stdout.close()
        if host.wait():
            raise SystemExit(f"{name} on {backend}: the host ended with {host.returncode}")
    del record["phase"]
    return {**record, "memory": memory.growth()}


def show(name: str, record: dict[str, Any]) -> str:
    memory, loop, calls = record["memory"], record["loop"], record["bystander"]
    quiet, abused = calls["quiet"], calls["abused"]
    grown = "/".join(f"{memory.get(role, 0) / MIB:.0f}" for role in ("host", "worker", "client"))

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value * 1e3:.0f}" if value >= 0.01 else f"{value * 1e3:.1f}"

    ended = ", ".join(f"{count} {what}" for what, count in sorted(record["ended"].items(), key=lambda item: -item[1]))
    failed = sum(abused["failed"].values())
    return (
        f"{ABUSES[name].what:40} {grown:>15} {ms(loop['longest_s']):>6} {ms(loop['most_cpu_s']):>6} "
        f"{ms(quiet['p99_s']):>6} {ms(abused['p99_s']):>6} {ms(abused['longest_s']):>6} {failed:>3}/{abused['calls']:<5} {ended}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="trio,asyncio")
    parser.add_argument("--only", default=",".join(ABUSES))
    parser.add_argument("--quiet", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--size", type=int, default=0, help="bytes or parts of what is sent; 0: each abuse's own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    found: dict[str, Any] = {"machine": machine, "seconds": options.seconds}
    for backend in options.backend.split(","):
        print(
            f"{backend:40} {'host/wrk/cl MiB':>15} {'pass':>6} {'CPU':>6} {'quiet':>6} {'p99':>6} {'max':>6} "
            f"{'fail':>3}/{'calls':5} what ended"
        )
        for name in options.only.split(","):
            size = options.size or ABUSES[name].size
            record = drive(name, backend, options.quiet, options.seconds, size)
            found.setdefault(backend, {})[name] = record
            print(show(name, record), flush=True)
            if options.json:
                options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(machine)
    return int(
        any(
            each["bystander"]["abused"]["failed"]
            for backend in ("trio", "asyncio")
            for each in found.get(backend, {}).values()
        )
    )


if __name__ == "__main__":
    if "--as-host" in sys.argv:
        _, _, which, on, *figures, much = sys.argv
        anyio.run(measure, which, on, *map(float, figures), int(much), backend=on)
    elif "--as-bystander" in sys.argv:
        _, _, on, where, pool_name, tool_name, arguments = sys.argv
        anyio.run(bystander, where, pool_name, tool_name, json.loads(arguments), backend=on)
    else:
        sys.exit(main())
