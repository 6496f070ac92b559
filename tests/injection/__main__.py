"""Tries every function of a side: ``python -m tests.injection --side host --backend trio --json out.json``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter

from tests.injection.sides import SIDES
from tests.injection.trying import Settings, trying
from tests.injection.verdict import is_good, outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.injection", description=__doc__)
    parser.add_argument("--side", choices=SIDES, default="host", help="where the exception is raised")
    parser.add_argument("--phase", choices=["running", "opening", "closing"], default="running")
    parser.add_argument("--backend", choices=["trio", "asyncio"], default="trio")
    parser.add_argument("--store", default="memory", help="memory or sqlite:PATH")
    parser.add_argument("--only", default="", help="a regular expression for 'FILE NAME' of the functions")
    parser.add_argument("--entries", default="1,3", help="which entries of each function")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th function")
    parser.add_argument("--json", help="a file that a line for each try is added to")
    options = parser.parse_args()
    begun, found, bad = time.monotonic(), Counter[str](), []
    with trying(Settings(options.side, options.phase, options.backend, options.store)) as tries:
        counts = tries.counts()
        functions = sorted(target for target in counts if re.search(options.only, f"{target.file} {target.name}"))
        targets = [
            (target, entry)
            for entry in map(int, options.entries.split(","))
            for target in functions[:: options.every]
            if counts[target] >= entry
        ]
        print(f"{len(counts)} functions, {len(targets)} tries", file=sys.stderr)
        for number, result in enumerate(tries.run(targets), 1):
            what = outcome(result)
            found[what] += 1
            file, name, line, entry = result["target"]
            words = f"{what:<40} {file}:{line} {name} #{entry}"
            print(f"{number:>5} {words}", flush=True)
            if not is_good(result, options.phase):
                bad.append(words)
            if options.json:
                with open(options.json, "a") as out:
                    out.write(json.dumps({"outcome": what, "side": options.side, **result}) + "\n")
    print(f"\n{found.total()} tries in {time.monotonic() - begun:.0f} s")
    for what, count in found.most_common():
        print(f"{count:>6} {what}")
    if bad:
        print(f"\n{len(bad)} of them are faults:")
        print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
