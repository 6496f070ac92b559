"""Tries every function of a side: ``python -m tests.injection --side host --backend trio --json out.json``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.injection.sides import SIDES
from tests.injection.tracing import Target
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
    parser.add_argument("--resume", action="store_true", help="leave out what that file tells of already")
    options = parser.parse_args()
    begun, found, bad = time.monotonic(), Counter[str](), []
    again: list[tuple[Target, int]] = []

    def note(result: dict[str, Any], *, last: bool) -> None:
        what = outcome(result)
        file, name, line, entry = result["target"]
        good = is_good(result, options.phase)
        words = f"{what:<40} {file}:{line} {name} #{entry}"
        print(f"{'' if last else '(once) '}{words}" if not good else words, flush=True)
        if not good and not last:
            again.append((Target(file, name, line), entry))
        elif not good:
            bad.append(words)
        if good or last:
            found[what] += 1
        if options.json:
            with open(options.json, "a") as out:
                kind = {"side": options.side, "phase": options.phase, "backend": options.backend}
                out.write(json.dumps({"outcome": what, **kind, "once": not good and not last, **result}))
                out.write("\n")

    with trying(Settings(options.side, options.phase, options.backend, options.store)) as tries:
        counts = tries.counts()
        functions = sorted(target for target in counts if re.search(options.only, f"{target.file} {target.name}"))
        targets = [
            (target, entry)
            for entry in map(int, options.entries.split(","))
            for target in functions[:: options.every]
            if counts[target] >= entry
        ]
        if options.resume:
            done = _done(Path(options.json))
            targets = [(target, entry) for target, entry in targets if (target.file, target.name, entry) not in done]
        print(f"{len(counts)} functions, {len(targets)} tries", file=sys.stderr)
        for result in tries.run(targets):
            note(result, last=False)
        # What was bad once may have been the machine: it is bad if it is so again, in a process of its own.
        for one in again:
            for result in tries.run([one]):
                note(result, last=True)
    print(f"\n{found.total()} tries in {time.monotonic() - begun:.0f} s")
    for what, count in found.most_common():
        print(f"{count:>6} {what}")
    if bad:
        print(f"\n{len(bad)} of them are faults:")
        print("\n".join(bad))
    return 1 if bad else 0


def _done(path: Path) -> set[tuple[str, str, int]]:
    """What has been tried, and need not be again; lines move, and don't count."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(file, name, entry) for row in rows if not row["once"] for file, name, _, entry in [row["target"]]}


if __name__ == "__main__":
    sys.exit(main())
