"""What a waiting request costs the queue, in microseconds, at 1 000, 10 000 and 100 000 of them: it should be flat.

python benchmarks/queue_cost.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from snakepit_trio._call_options import CallOptions
from snakepit_trio.pool.scheduling.expiry import CancelSet
from snakepit_trio.pool.scheduling.queue import RequestQueue
from snakepit_trio.pool.scheduling.request import Request
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from snakepit_trio.wire.frames import MSGPACK, Payload

SIZES = (1_000, 10_000, 100_000)
NOTHING = Payload(MSGPACK, b"\xc0")


def requests(count: int) -> list[Request]:
    return [
        Request(
            n,
            "t",
            NOTHING,
            CallOptions(priority=n % 3),
            on_end=lambda: None,
            deadline=300 + n * 1e-4,
            queue_deadline=10 + n * 1e-4,
        )
        for n in range(count)
    ]


def timed(work: Callable[[], object], count: int) -> float:
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / count * 1e6


def measure(count: int) -> dict[str, float]:
    """Cost per entry of each operation on a scheduler without workers, and of taking entries out of the queue."""
    found = {}
    scheduler = Scheduler(queue=RequestQueue(aging=30.0), cancel_set=CancelSet(1024, 60.0))
    waiting = requests(count)
    found["enqueue"] = timed(lambda: [scheduler.submit(r, 0.0) for r in waiting], count)
    found["cancel"] = timed(lambda: [scheduler.cancel(r, 0.0) for r in waiting], count)
    waiting = requests(count)
    for request in waiting:
        scheduler.submit(request, 0.0)
    found["expire"] = timed(lambda: scheduler.expire(1000.0), count)
    queue: RequestQueue[Request] = RequestQueue(aging=30.0)
    for request in requests(count):
        queue.push(request, 0.0)
    found["dequeue"] = timed(lambda: [queue.pop(1.0) for _ in range(count)], count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    table = {}
    for size in SIZES:
        rounds = [measure(size) for _ in range(max(3, 100_000 // size // 10))]
        table[size] = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    print(f"{'entries':>9} " + " ".join(f"{key:>10}" for key in table[SIZES[0]]) + "   us per entry")
    for size, row in table.items():
        print(f"{size:9} " + " ".join(f"{value:10.2f}" for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
