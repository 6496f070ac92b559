"""A cluster of many hosts, simulated: the pool's own scheduler and queue under a discrete clock, no processes, no network.

python benchmarks/cluster.py [--seconds 10] [--rate 100000] [--hosts 50] [--workers 200] [--json FILE] [--plot FILE.svg]

Each host owns a pool of workers on a number of nodes. Front ends hand requests to hosts by one of three policies:

- ``random``: any host
- ``two_choices``: the less loaded of two, by loads that are known as of the last report (``REPORT_EVERY``)
- ``least``: the least loaded of all, by the same reports

Service times are log-normal. At 40 % of the time some nodes are lost with their workers: calls that may be run again go back
to the queue, others fail; replacements are ready after ``REPLACE_AFTER``. At 70 % a whole host is lost: the front ends
notice after ``NOTICE_AFTER``, what was sent there until then is sent to another.

It shows how queues behave, not how fast the code is: a decision takes no time here, and messages a constant one.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from snakepit_trio._call_options import CallOptions
from snakepit_trio.errors import WorkerCrashed
from snakepit_trio.pool.scheduling.expiry import CancelSet
from snakepit_trio.pool.scheduling.queue import RequestQueue
from snakepit_trio.pool.scheduling.request import Outcome, Request, Seats
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from snakepit_trio.wire.frames import MSGPACK, Payload

POLICIES = ("random", "two_choices", "least")
NODES = 5
#: Means and delays, in seconds. The load is rate * SERVICE_MEAN / (hosts * workers): 0.8 with the defaults.
SERVICE_MEAN, SERVICE_SIGMA = 0.08, 0.6
NETWORK = 0.0003
REPORT_EVERY = 0.05
REPLACE_AFTER = 3.0
NOTICE_AFTER = 0.1
QUEUE_TIMEOUT, TIMEOUT = 10.0, 30.0
IDEMPOTENT = 0.5
LOST_NODES = 0.05
BIN = 0.1
NOTHING = Payload(MSGPACK, b"\xc0")


class Worker:
    """A port of the scheduler: runs each call for as long as the call takes, in simulated time."""

    def __init__(self, host: Host, node: int) -> None:
        self.host = host
        self.node = node
        self.seats = Seats(self, 1)
        self.alive = True

    def start(self, request: Request) -> None:
        host = self.host
        host.cluster.started(request)
        host.cluster.at(host.cluster.service_time() + 2 * NETWORK, self._ended, request.id)

    def cancel(self, request: Request) -> None:
        """A call that nobody waits for runs to its end all the same."""

    withdraw = recall = cancel

    def _ended(self, call: int) -> None:
        if self.alive:
            self.host.scheduler.replied(self.seats, call, self.host.cluster.now, result=NOTHING, error=None)


class Host:
    """One host: a scheduler and its workers."""

    def __init__(self, cluster: Cluster, workers: int) -> None:
        self.cluster = cluster
        self.alive = True
        self.reported = 0
        self.scheduler = Scheduler(
            queue=RequestQueue(max_queue=None, aging=30.0), cancel_set=CancelSet(1024, 60.0), observer=cluster.observe
        )
        self.workers: list[Worker] = []
        for index in range(workers):
            self.add(index % NODES)

    def add(self, node: int) -> None:
        worker = Worker(self, node)
        self.workers.append(worker)
        self.scheduler.incarnations.open(worker.seats, self.cluster.now)

    @property
    def load(self) -> int:
        return self.scheduler.ledger.in_flight + self.scheduler.ledger.queued

    def lose(self, node: int) -> int:
        """A node is gone. Its workers are replaced on the others, later."""
        error = WorkerCrashed("the node is lost")
        lost = [worker for worker in self.workers if worker.node == node]
        for worker in lost:
            worker.alive = False
            self.workers.remove(worker)
            self.scheduler.incarnations.gone(worker.seats, error, self.cluster.now)
            self.cluster.at(REPLACE_AFTER, self.add, (node + 1) % NODES)
        return len(lost)


class Cluster:
    """All hosts, the front ends, the clock."""

    def __init__(self, hosts: int, workers: int, policy: str, rate: float, seed: int) -> None:
        self.now = 0.0
        self.policy = policy
        self.rate = rate
        self.rng = random.Random(seed)
        self.events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self.numbers = itertools.count()
        self.ids = itertools.count(1)
        self.waits: dict[int, list[float]] = {}
        self.outcomes: Counter[str] = Counter()
        self.loads: list[tuple[float, float]] = []
        self.homes: dict[int, Host] = {}
        self.hosts = [Host(self, workers) for _ in range(hosts)]
        self.known = list(self.hosts)

    def at(self, delay: float, function: Any, *arguments: Any) -> None:
        heapq.heappush(self.events, (self.now + delay, next(self.numbers), function, arguments))

    def service_time(self) -> float:
        return self.rng.lognormvariate(math.log(SERVICE_MEAN) - SERVICE_SIGMA**2 / 2, SERVICE_SIGMA)

    def started(self, request: Request) -> None:
        # Counted from when the client first asked, whichever hosts it was sent to.
        first = request.deadline - TIMEOUT
        self.waits.setdefault(int(self.now / BIN), []).append(self.now - first)

    def observe(self, event: str, request: Request, now: float) -> None:
        if event in _FINAL:
            self.outcomes[event] += 1

    # ---- the front ends ----------------------------------------------------------------------------

    def choose(self) -> Host:
        known = self.known
        if self.policy == "random":
            return self.rng.choice(known)
        if self.policy == "two_choices":
            one, other = self.rng.choice(known), self.rng.choice(known)
            return one if one.reported <= other.reported else other
        return min(known, key=lambda host: host.reported)

    def arrive(self) -> None:
        self.at(self.rng.expovariate(self.rate), self.arrive)
        self.send(self.now)

    def send(self, first: float) -> None:
        host = self.choose()
        # What a front end has sent itself since the last report, it knows.
        host.reported += 1
        self.at(NETWORK, self.submit, host, first)

    def submit(self, host: Host, first: float) -> None:
        if not host.alive:
            self.outcomes["sent_again"] += 1
            self.at(NOTICE_AFTER, self.send, first)
            return
        request = Request(
            next(self.ids), "t", NOTHING, CallOptions(idempotent=self.rng.random() < IDEMPOTENT), on_end=_nothing,
            deadline=first + TIMEOUT, queue_deadline=first + QUEUE_TIMEOUT,
        )  # fmt: skip
        host.scheduler.submit(request, self.now)

    def report(self) -> None:
        for host in self.hosts:
            host.reported = host.load
        alive = [host for host in self.hosts if host.alive]
        capacity = sum(len(host.workers) for host in alive)
        self.loads.append((self.now, sum(host.scheduler.ledger.in_flight for host in alive) / capacity))
        self.at(REPORT_EVERY, self.report)

    def expire(self) -> None:
        for host in self.hosts:
            if host.alive:
                host.scheduler.expire(self.now)
        self.at(0.05, self.expire)

    # ---- losses ------------------------------------------------------------------------------------

    def lose_nodes(self, count: int) -> None:
        places = [(host, node) for host in self.hosts for node in range(NODES)]
        for host, node in self.rng.sample(places, count):
            self.outcomes["workers_lost"] += host.lose(node)

    def lose_host(self) -> None:
        host = self.rng.choice(self.hosts)
        host.alive = False
        self.outcomes["calls_lost_with_a_host"] = host.load
        for worker in host.workers:
            worker.alive = False
        self.at(NOTICE_AFTER, self.known.remove, host)

    def run(self, seconds: float) -> None:
        self.at(0.0, self.arrive)
        self.at(0.0, self.report)
        self.at(0.0, self.expire)
        self.at(0.4 * seconds, self.lose_nodes, round(LOST_NODES * len(self.hosts) * NODES))
        self.at(0.7 * seconds, self.lose_host)
        while self.events and self.events[0][0] < seconds:
            self.now, _, function, arguments = heapq.heappop(self.events)
            function(*arguments)


_FINAL = {outcome.value for outcome in Outcome}


def _nothing() -> None:
    """Nobody waits."""


def _quantile(values: list[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))]


def simulate(policy: str, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.perf_counter()
    cluster = Cluster(options.hosts, options.workers, policy, options.rate, options.seed)
    cluster.run(options.seconds)
    over_time = []
    steady: list[float] = []
    for number in sorted(cluster.waits):
        waits = sorted(cluster.waits[number])
        at = number * BIN
        over_time.append(
            {"seconds": round(at, 3), "p50_ms": statistics.median(waits) * 1e3, "p99_ms": _quantile(waits, 0.99) * 1e3}
        )
        if 0.15 * options.seconds <= at < 0.4 * options.seconds:
            steady += waits
    steady.sort()
    return {
        "policy": policy,
        "steady_wait_p50_ms": _quantile(steady, 0.5) * 1e3,
        "steady_wait_p99_ms": _quantile(steady, 0.99) * 1e3,
        "steady_wait_p999_ms": _quantile(steady, 0.999) * 1e3,
        "worst_bin_p99_ms": max(bin["p99_ms"] for bin in over_time),
        "outcomes": dict(cluster.outcomes),
        "over_time": over_time,
        "busy": [(round(at, 3), round(share, 4)) for at, share in cluster.loads],
        "took_s": round(time.perf_counter() - begun, 1),
    }


def plot(records: list[dict[str, Any]], path: Path, options: argparse.Namespace) -> None:
    import matplotlib.pyplot as plt

    figure, (waits, busy) = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    for record in records:
        bins = record["over_time"]
        seconds = [bin["seconds"] for bin in bins]
        (line,) = waits.plot(seconds, [max(0.01, bin["p99_ms"]) for bin in bins], label=record["policy"], linewidth=1.2)
        busy.plot(*zip(*record["busy"], strict=True), color=line.get_color(), linewidth=1)
    waits.set_yscale("log")
    waits.set_ylabel("wait for a worker, p99 (ms)")
    waits.legend(fontsize=8)
    busy.set_ylabel("workers that are busy")
    busy.set_xlabel("simulated seconds")
    for axis in (waits, busy):
        for at in (0.4, 0.7):
            axis.axvline(at * options.seconds, color="grey", linestyle=":", linewidth=1)
        axis.grid(alpha=0.3)
    waits.set_title(
        f"{options.hosts} hosts of {options.workers} workers, {options.rate:g} requests/s; "
        f"{LOST_NODES:.0%} of the nodes lost, then a host",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated")
    parser.add_argument("--rate", type=float, default=100_000.0, help="requests per second")
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--workers", type=int, default=200, help="of each host")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    records = []
    for policy in options.policies.split(","):
        record = simulate(policy, options)
        records.append(record)
        print(
            f"{policy:12} wait p50 {record['steady_wait_p50_ms']:8.2f} ms  p99 {record['steady_wait_p99_ms']:8.2f} ms  "
            f"p99.9 {record['steady_wait_p999_ms']:8.2f} ms  worst p99 in {BIN:g} s {record['worst_bin_p99_ms']:8.1f} ms  "
            f"{record['outcomes']}  ({record['took_s']} s)"
        )
    print(f"{options.hosts} hosts of {options.workers} workers, {options.rate:g} requests/s, {options.seconds:g} s")
    if options.json:
        options.json.write_text(json.dumps(records) + "\n")
    if options.plot:
        plot(records, options.plot, options)


if __name__ == "__main__":
    main()
