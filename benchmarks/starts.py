"""How soon workers are there: after a kill, and many at once; what they cost idle; how soon they go with their host.

python benchmarks/starts.py [--sizes 8,32,100,500] [--kills 30] [--json FILE]

Memory is the mean over the workers of a pool, just started, of what the system says: RSS counts pages that are shared
with others in full, PSS divides them among those that share them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio

import snakepit_trio as sp

METHODS = ("fork_server", "spawn")
IDLE_WORKERS, IDLE_SECONDS = 100, 10.0


@sp.tool
def pid() -> int:
    return os.getpid()


async def kill_to_ready(method: str, kills: int) -> dict[str, float]:
    """From kill -9 of the only worker to the first result of its replacement, and to its being ready."""
    seconds = []
    async with sp.open_pool(
        "starts",
        size=1,
        start_method=method,
        restart_limit=10_000,
        restart_window=0.01,
        backoff_base=0,
        queue_timeout=None,
    ) as pool:
        for _ in range(kills):
            await anyio.sleep(0.05)
            before = await pool.execute("pid")
            begun = time.perf_counter()
            os.kill(before, signal.SIGKILL)
            while await pool.execute("pid", idempotent=True) == before:
                pass
            seconds.append(time.perf_counter() - begun)
    seconds.sort()
    return {"p50_ms": statistics.median(seconds) * 1e3, "max_ms": seconds[-1] * 1e3}


def memory(pids: list[int]) -> tuple[float, float]:
    """Mean RSS and PSS, in MiB."""
    totals = {"Rss": 0, "Pss": 0}
    for number in pids:
        for line in Path(f"/proc/{number}/smaps_rollup").read_text().splitlines():
            name = line.partition(":")[0]
            if name in totals:
                totals[name] += int(line.split()[1])
    return totals["Rss"] / len(pids) / 1024, totals["Pss"] / len(pids) / 1024


async def many(method: str, size: int) -> dict[str, float]:
    """Time to open a pool, all workers ready, and what each occupies then."""
    begun = time.perf_counter()
    async with sp.open_pool("starts", size=size, start_method=method, startup_timeout=120) as pool:
        await pool.wait_ready()
        seconds = time.perf_counter() - begun
        rss, pss = memory([worker.pid for worker in pool.workers()])
        begun = time.perf_counter()
    return {"ready_s": seconds, "closed_s": time.perf_counter() - begun, "rss_mib": rss, "pss_mib": pss}


def cpu_time(number: int) -> float:
    fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def idle() -> dict[str, float]:
    """CPU of host and workers with nothing to do but heartbeats, every 2 s, in percent of one core."""
    async with sp.open_pool("starts", size=IDLE_WORKERS) as pool:
        pids = [worker.pid for worker in pool.workers()]
        host, workers = cpu_time(os.getpid()), sum(map(cpu_time, pids))
        await anyio.sleep(IDLE_SECONDS)
        return {
            "host_percent": (cpu_time(os.getpid()) - host) / IDLE_SECONDS * 100,
            "workers_percent": (sum(map(cpu_time, pids)) - workers) / IDLE_SECONDS * 100,
        }


HOST = """
import anyio, sys
import snakepit_trio as sp

async def main():
    async with sp.open_pool("starts", size=int(sys.argv[1]), start_method=sys.argv[2]) as pool:
        print(*(worker.pid for worker in pool.workers()), flush=True)
        await anyio.sleep_forever()

anyio.run(main, backend="trio")
"""


def host_killed(method: str, size: int) -> float:
    """From SIGKILL of a host to the end of the last of its workers, in seconds."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(size), method], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    assert host.stdout is not None
    poll = select.poll()
    left = {os.pidfd_open(int(number)) for number in host.stdout.readline().split()}
    for fd in left:
        poll.register(fd, select.POLLIN)
    host.kill()
    begun = time.perf_counter()
    while left:
        for fd, _ in poll.poll(10_000):
            poll.unregister(fd)
            left.discard(fd)
            os.close(fd)
    seconds = time.perf_counter() - begun
    host.communicate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="8,32,100,500")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    found: dict[str, Any] = {"kill": {}, "many": {}, "host_killed_s": {}}
    for method in METHODS:
        row = found["kill"][method] = anyio.run(kill_to_ready, method, options.kills, backend="trio")
        print(
            f"kill -9 to the replacement's first result, {method:12} p50 {row['p50_ms']:6.1f} ms  max {row['max_ms']:6.1f} ms"
        )
    for method in METHODS:
        for size in sizes if method == "fork_server" else sizes[:3]:
            row = found["many"][f"{method} {size}"] = anyio.run(many, method, size, backend="trio")
            print(
                f"{size:4} workers by {method:12} ready in {row['ready_s']:6.2f} s  closed in {row['closed_s']:5.2f} s  "
                f"each RSS {row['rss_mib']:5.1f} MiB  PSS {row['pss_mib']:5.1f} MiB"
            )
    row = found["idle"] = anyio.run(idle, backend="trio")
    print(
        f"idle, {IDLE_WORKERS} workers: host {row['host_percent']:.1f} % of a core, all workers {row['workers_percent']:.1f} %"
    )
    for method in METHODS:
        seconds = found["host_killed_s"][method] = host_killed(method, 32)
        print(f"kill -9 of a host with 32 workers to the end of the last, {method:12} {seconds * 1e3:6.1f} ms")
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
