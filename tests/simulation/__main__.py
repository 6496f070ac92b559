"""Run one seed again, or a part of it: ``python -m tests.simulation SEED [--callers 1,5] [--faults 0] [--without fair]``."""

from __future__ import annotations

import argparse
import sys
import traceback

from .scenario import draw
from .simulator import explain, run, shrink


def numbers(text: str) -> set[int]:
    return set() if text == "none" else {int(word) for word in text.split(",")}


parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
parser.add_argument("seed", type=int)
parser.add_argument("--callers", type=numbers, help="only these, by number")
parser.add_argument("--faults", type=numbers, help="only these, by number")
parser.add_argument("--without", type=lambda text: set(text.split(",")), help="options that are left at their defaults")
parser.add_argument("--shrink", action="store_true", help="when it fails, look for the smallest part that does")
given = parser.parse_args()
whole = draw(given.seed)
scenario = whole.only(given.callers, given.faults, given.without)
result = run(scenario)
if result.failure is not None and given.shrink:
    scenario, result = shrink(scenario)
if result.failure is not None:
    traceback.print_exception(result.failure)
    sys.exit(explain(scenario, result, whole))
print(*result.history, sep="\n")
print(f"holds: {dict(result.outcomes)}, faults {dict(result.faults)}, {result.checks} checks")
