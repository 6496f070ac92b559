"""A long run of everything at once: are all calls accounted for, does anything grow, is anything left?

python benchmarks/soak.py [--calls 1000000] [--backend trio] [--seed 1] [--json FILE]

Callers make calls of every kind, some of which are cancelled, time out, leave streams early, raise, or kill their worker,
while workers are killed, stopped, recycled and the pool is resized at random. Twice a second the host's memory,
descriptors, threads and tasks are noted. It fails when a call ends twice or never, or with what it must not end with, when
the pool's books do not agree with the callers', when something is left at the end, or when memory or descriptors grow:
a line over the number of calls is fitted through the samples of the second half, and its rise must stay within a few per
cent. What counts is memory in use, which is private memory without what malloc keeps free, and the interpreter's blocks. The
first half is the warm-up, until every bounded table is full; private memory itself is reported for both.
The seed fixes what is done, not the machine's timing.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import psutil

import snakepit_trio as sp

SIZE, CALLERS = 4, 48
#: The part of the calls that counts as warming up: the recorder's rings, Trio's heap of deadlines and such are filled in it.
WARM_UP = 0.5
#: By how much these may rise from the end of the warm-up to the end, in per cent. Descriptors are noted, but go up and down with
#: the workers and with what these hold; they are counted at the end.
GROWTH = {"in_use_mib": 3.0, "blocks": 5.0}
#: The time between two samples in seconds, and how many a run must have to say anything about growth.
EVERY, LONG = 0.5, 120
KINDS = {
    "echo": 900, "stream": 20, "array": 5, "session": 10, "rest": 15, "nap": 5, "fail": 10, "host": 10, "cancel": 20,
    "timeout": 4, "stuck": 0.2, "die": 0.1,
}  # fmt: skip


class _MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def _malloc_free() -> Callable[[], int]:
    """Bytes that malloc has from the system and holds free; 0 where it can't say."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return lambda: 0
    ask.restype = _MallInfo
    return lambda: ask().fordblks


class Soak:
    """One run."""

    def __init__(self, runtime: sp.Runtime, calls: int, seed: int) -> None:
        self.runtime = runtime
        self.pool = runtime.pool("default")
        self.rng = random.Random(seed)
        self.calls = calls
        self.left = calls
        self.outcomes: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self.samples: list[dict[str, float]] = []
        self.process = psutil.Process()
        self.malloc_free = _malloc_free()
        self.begun = time.perf_counter()

    # ---- calls -----------------------------------------------------------------------------------

    async def caller(self) -> None:
        kinds, weights = list(KINDS), list(KINDS.values())
        while self.left > 0:
            self.left -= 1
            kind = self.rng.choices(kinds, weights)[0]
            outcome = "ok"
            try:
                await getattr(self, f"_{kind}")()
            except sp.SnakepitError as exc:
                outcome = exc.code
                if not self._expected(kind, exc):
                    raise
            self.done[kind] += 1
            self.outcomes[outcome] += 1

    @staticmethod
    def _expected(kind: str, exc: sp.SnakepitError) -> bool:
        """Whether a call of this kind may end so, in a pool whose workers are being killed."""
        if isinstance(exc, sp.WorkerCrashed | sp.SessionWorkerUnavailable):
            return True
        return (kind == "fail" and isinstance(exc, sp.ToolError)) or (
            kind in ("timeout", "stuck") and isinstance(exc, sp.RequestTimeout)
        )

    async def _echo(self) -> None:
        value = self.rng.getrandbits(48)
        assert await self.pool.execute("echo", {"value": value}) == value

    async def _array(self) -> None:
        value = self.rng.randbytes(16) * 20_000
        assert await self.pool.execute("echo", {"value": value}) == value

    async def _stream(self) -> None:
        leave_at = self.rng.choice([None, 3])
        async with self.pool.stream("count", {"n": 12}) as chunks:
            seen = 0
            async for chunk in chunks:
                assert chunk == seen
                seen += 1
                if seen == leave_at:
                    return
            assert seen == 12

    async def _session(self) -> None:
        async with self.pool.session(affinity="strict_queue") as session:
            await session.put("key", 1)
            for value in range(2):
                assert await session.execute("echo", {"value": value}) == value

    async def _rest(self) -> None:
        assert await self.pool.execute("rest", {"seconds": 0.002}) == "rested"

    async def _nap(self) -> None:
        assert await self.pool.execute("nap", {"seconds": 0.005}) == "rested"

    async def _fail(self) -> None:
        try:
            await self.pool.execute("fail", {"message": "as asked"})
        except sp.remote(ValueError) as exc:
            if exc.remote_message != "as asked":
                raise AssertionError(exc.remote_message) from exc
            raise
        raise AssertionError("it did not fail")

    async def _host(self) -> None:
        assert await self.pool.execute("ask_host", {"value": 21}) == 42

    async def _cancel(self) -> None:
        with anyio.move_on_after(self.rng.uniform(0, 0.004)):
            await self.pool.execute("rest", {"seconds": 0.02})

    async def _timeout(self) -> None:
        await self.pool.execute("rest", {"seconds": 30}, timeout=self.rng.uniform(0.005, 0.05))

    async def _stuck(self) -> None:
        await self.pool.execute("nap", {"seconds": 20}, timeout=0.05)

    async def _die(self) -> None:
        await self.pool.execute("die")

    # ---- what is done to the pool ------------------------------------------------------------------

    async def trouble(self) -> None:
        deeds: list[Callable[[], Awaitable[Any]]] = [self.kill, self.stop, self.recycle, self.resize, self.roll]
        while True:
            await anyio.sleep(self.rng.uniform(0.2, 1.5))
            deed = self.rng.choices(deeds, [8, 2, 4, 2, 1])[0]
            try:
                await deed()
            except (sp.WorkerStartupError, sp.InvalidParameter):
                pass  # The worker that was meant has just gone by itself.
            self.deeds[deed.__name__] += 1

    def _victim(self) -> sp.WorkerInfo | None:
        alive = [worker for worker in self.pool.workers() if worker.state in ("ready", "busy")]
        return self.rng.choice(alive) if alive else None

    async def kill(self) -> None:
        if victim := self._victim():
            _signal(victim.pid, signal.SIGKILL)

    async def stop(self) -> None:
        if victim := self._victim():
            _signal(victim.pid, signal.SIGSTOP)

    async def recycle(self) -> None:
        if victim := self._victim():
            await self.pool.recycle(victim.id)

    async def resize(self) -> None:
        await self.pool.resize(self.rng.randint(SIZE - 1, SIZE + 2))

    async def roll(self) -> None:
        await self.pool.rolling_restart()

    # ---- what is noted -------------------------------------------------------------------------------

    async def watch(self) -> None:
        while True:
            self.sample()
            await anyio.sleep(EVERY)

    def sample(self) -> None:
        stats, memory = self.pool.stats(), self.process.memory_info()
        # Without mapped segments, whose number goes with the workers and with what they hold just now.
        private, free = memory.rss - memory.shared, self.malloc_free()
        self.samples.append(
            {
                "seconds": round(time.perf_counter() - self.begun, 2),
                "calls": self.calls - self.left,
                "rss_mib": memory.rss / 2**20,
                "private_mib": private / 2**20,
                "in_use_mib": (private - free) / 2**20,
                "blocks": sys.getallocatedblocks(),
                "descriptors": self.process.num_fds(),
                "threads": self.process.num_threads(),
                "workers": len(self.pool.workers()),
                "queued": stats.queued,
                "cancel_set": stats.cancel_set_size,
            }
        )
        if sys.stderr.isatty():
            print(f"\r{self.calls - self.left:>9} calls, {stats.restarts} restarts", end="", file=sys.stderr)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _growth(samples: list[dict[str, float]], key: str, start: float, end: float = 1.0) -> float:
    """By how much the line that fits these samples best rises over this part of the calls, in per cent of where it begins."""
    calls = samples[-1]["calls"]
    part = [sample for sample in samples if start * calls <= sample["calls"] <= end * calls]
    if len({sample["calls"] for sample in part}) < 3:
        return 0.0
    begun = part[0]["calls"]
    slope, at_start = statistics.linear_regression(
        [sample["calls"] - begun for sample in part], [sample[key] for sample in part]
    )
    return 100.0 * slope * (part[-1]["calls"] - begun) / at_start


async def soak(calls: int, seed: int, backend: str) -> dict[str, Any]:
    """Run it; returns the record, whose ``failures`` should be empty."""
    before = psutil.Process().num_fds()
    pool = sp.PoolConfig(
        adapter="soak_tools",
        size=SIZE,
        max_queue=None,
        queue_timeout=None,
        timeout=60,
        cancel_grace=0.2,
        heartbeat_interval=0.3,
        restart_limit=1_000_000,
        restart_window=1.0,
        backoff_base=0.0,
        max_requests=20_000,
    )
    async with sp.open_runtime(sp.RuntimeConfig(pools=[pool])) as runtime:
        run = Soak(runtime, calls, seed)

        @runtime.tools.host_tool
        async def double(value: int) -> int:
            return 2 * value

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(run.watch)
            nursery.start_soon(run.trouble)
            async with anyio.create_task_group() as callers:
                for _ in range(CALLERS):
                    callers.start_soon(run.caller)
            nursery.cancel_scope.cancel()
        seconds = time.perf_counter() - run.begun
        # What is being restarted, or still held by a worker for a caller who has gone, gets a moment.
        with anyio.move_on_after(30):
            await run.pool.resize(SIZE)
            await run.pool.wait_ready()
        stats = run.pool.stats()
        run.sample()
    failures = []
    ended = stats.completed + stats.failed + stats.cancelled + stats.timed_out
    if stats.accepted != ended + stats.in_flight + stats.queued or stats.in_flight or stats.queued:
        failures.append(f"the pool's books: {stats}")
    if sum(run.outcomes.values()) != calls:
        failures.append(f"{sum(run.outcomes.values())} calls ended, of {calls}")
    if stats.ready != SIZE:
        failures.append(f"{stats.ready} of {SIZE} workers are ready at the end")
    children = psutil.Process().children(recursive=True)
    if children:
        failures.append(f"left: {children}")
    after = psutil.Process().num_fds()
    if after > before + 2:  # The event loop's own.
        failures.append(f"left: {after - before} descriptors")
    growth = {key: _growth(run.samples, key, WARM_UP) for key in (*GROWTH, "private_mib", "rss_mib", "descriptors")}
    halves = [_growth(run.samples, "private_mib", 0.1, WARM_UP), growth["private_mib"]]
    if len(run.samples) >= LONG:
        failures += [f"{key} has grown by {growth[key]:.1f} %" for key, limit in GROWTH.items() if growth[key] > limit]
    return {
        "backend": backend,
        "seed": seed,
        "calls": calls,
        "seconds": seconds,
        "calls_per_s": calls / seconds,
        "kinds": dict(run.done),
        "outcomes": dict(run.outcomes),
        "deeds": dict(run.deeds),
        "restarts": stats.restarts,
        "late_replies": stats.late_replies,
        "growth_percent": growth,
        "private_growth_percent_of_halves": halves,
        "failures": failures,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "samples": run.samples,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    record = anyio.run(soak, options.calls, options.seed, options.backend, backend=options.backend)
    shown = {key: value for key, value in record.items() if key != "samples"}
    print(json.dumps(shown, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if record["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
