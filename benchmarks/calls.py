"""A trivial call through ``pool.execute``, beside its peers, in one run.

Each contender gets the same work: 64 bytes there and back, two workers. The contenders take turns, round after round, so
that a machine that grows slow grows slow for all; the figures are medians over the rounds, the ratios are of those medians.

    python benchmarks/calls.py [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import anyio
from contenders import OURS, installed, versions

from snakepit_trio.cli.bench import latency, machine, throughput

WORKERS, CALLERS = 2, 64
SEQUENTIAL, PARALLEL = 1500, 9600
DATA = b"x" * 64


async def one_round(name: str) -> dict[str, float]:
    async with installed()[name].opener(WORKERS) as call:
        return {**await latency(call, DATA, SEQUENTIAL), **await throughput(call, DATA, CALLERS, PARALLEL)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    contenders = installed()
    names = list(contenders)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        # Each round begins with another contender.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken[name].append(anyio.run(one_round, name, backend=contenders[name].backend))
    medians = {
        name: {key: statistics.median(lap[key] for lap in laps) for key in laps[0]} for name, laps in taken.items()
    }
    show(medians)
    print(f"medians of {options.rounds} rounds; {WORKERS} workers; calls/s with {CALLERS} callers; {machine()}")
    print(", ".join(f"{name} {version}" for name, version in versions().items()))
    if options.json:
        record = {
            "machine": machine(), "rounds": options.rounds, "versions": versions(), "medians": medians, "all": taken,
        }  # fmt: skip
        options.json.write_text(json.dumps(record, indent=2) + "\n")


def show(medians: dict[str, dict[str, float]]) -> None:
    """The table; the last column is what the first contender has beside each."""
    ours = medians[OURS]
    width = max(map(len, medians)) + 1
    print(
        f"{'':{width}}{'p50':>8}{'p99':>8}{'p99.9':>8}{'calls/s':>9}{'host CPU':>10}{'workers':>9} | {OURS} beside it"
    )
    for name, m in medians.items():
        beside = (
            f"{ours['p50_us'] / m['p50_us']:.2f}x the latency, "
            f"{ours['calls_per_second'] / m['calls_per_second']:.2f}x the calls/s"
        )
        print(
            f"{name:{width}}{m['p50_us']:5.0f} us{m['p99_us']:5.0f} us{m['p999_us']:5.0f} us{m['calls_per_second']:9.0f}"
            f"{m['host_cpu_us']:7.1f} us{m['worker_cpu_us']:6.1f} us | {beside}"
        )


if __name__ == "__main__":
    main()
