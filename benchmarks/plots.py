"""The figures of ``benchmarks/results`` as SVG, for docs/benchmarks.md and docs/reliability.md.

python benchmarks/plots.py [--out docs/images]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "snakepit"
import matplotlib.pyplot as plt  # noqa: E402

RESULTS = Path(__file__).parent / "results"


def bars(out: Path, record: dict[str, Any]) -> None:
    """Calls/s and median latency of each contender."""
    medians = record["medians"]
    names = list(medians)[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True)
    colours = ["tab:blue" if name.startswith("snakepit_trio") else "tab:gray" for name in names]
    left.barh(names, [medians[name]["calls_per_second"] for name in names], color=colours)
    left.set_xlabel("calls/s, 64 callers")
    right.barh(names, [medians[name]["p50_us"] for name in names], color=colours)
    right.set_xlabel("median of one call after another, us")
    save(figure, out / "calls.svg", rounds(record))


def lines(out: Path, record: dict[str, Any]) -> None:
    """Calls/s by callers, workers, size."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
    for axis, kind, label in zip(
        axes, ("callers", "workers", "size"), ("callers", "workers", "bytes there and back"), strict=True
    ):
        for name, found in record["medians"][kind].items():
            axis.plot([int(at) for at in found], list(found.values()), marker="o", label=name)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(label)
        axis.set_ylabel("calls/s")
        if kind == "size":
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    save(figure, out / "sweeps.svg", rounds(record))


def samples(out: Path, record: dict[str, Any]) -> None:
    """What a soak run's host holds, over time."""
    taken = record["samples"]
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), sharex=True)
    for axis, keys in zip(
        axes,
        (["rss_mib", "private_mib", "in_use_mib"], ["descriptors", "threads", "workers"], ["queued", "cancel_set"]),
        strict=True,
    ):
        for key in keys:
            axis.plot([at["seconds"] for at in taken], [at[key] for at in taken], label=key, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.legend(loc="lower right", fontsize=8)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("seconds")
    title = f"{record['calls']} calls on {record['backend']}, {record['restarts']} restarts; {record['machine']}"
    save(figure, out / f"soak-{record['backend']}.svg", title)


def rounds(record: dict[str, Any]) -> str:
    return f"medians of {record['rounds']} rounds; {record['machine']}"


def save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, plot in (("calls", bars), ("sweeps", lines), ("soak-trio", samples), ("soak-asyncio", samples)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            plot(out, json.loads(path.read_text()))


if __name__ == "__main__":
    main()
