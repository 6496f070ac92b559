"""Break the package in many small ways, one at a time, and see whether the tests of its rooms notice.

``python -m tests.mutation`` tries sixty, spread over all rooms, by a seed: ``--seed 2`` tries others, ``--room pool/`` those of
one room, ``--only pool/scheduling/queue.py:120`` those of one line, ``--again REPORT`` those that survived before. ``--named`` tries those that were found by hand (``breakages.toml``).
It exits with 1 when fewer than nine in ten are noticed, or when one of those by hand is not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .mutants import Mutant, mutants_of, sample
from .rooms import OTHERS, ROOMS, files_for, room_of
from .trying import PACKAGE, Copy, copied

HERE = Path(__file__).parent
#: The part of all breakages that has to be noticed; those that change nothing do not count.
ENOUGH = 0.9


def files(root: Path) -> dict[str, list[str]]:
    """The files of each room."""
    found: dict[str, list[str]] = {room: [] for room in ROOMS}
    for file in sorted(root.rglob("*.py")):
        path = str(file.relative_to(root))
        room = room_of(path)
        if room is not None:
            found[room].append(path)
    return found


def read(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((HERE / name).read_text()).get("breakage", [])
    return found


def explained(mutant: Mutant, diff: str, kept: list[dict[str, Any]]) -> str | None:
    """Why a breakage changes nothing that anybody could notice, if that has been written down."""
    lines = [line[1:].strip() for line in diff.splitlines() if line[:1] == "+"]
    return next((one["why"] for one in kept if one["file"] == mutant.path and one["becomes"] in lines), None)


def chosen(root: Path, given: argparse.Namespace) -> Iterator[Mutant]:
    rooms = {room: paths for room, paths in files(root).items() if not given.room or room in given.room}
    if given.again:
        report = given.again.read_text().splitlines()
        for number, line in enumerate(report):
            if line.startswith("survived: "):
                path, lines = line.split()[1].rpartition(":")[0], report[number + 1 : number + 7]
                source = (root / path).read_bytes()
                made = [mutant for mutant in mutants_of(root, path) if mutant.diff(source).splitlines() == lines[:2]]
                yield from sorted(made, key=lambda mutant: abs(mutant.line - int(line.split()[1].rpartition(":")[2])))[
                    :1
                ]
        return
    if not given.only:
        yield from sample(root, rooms, given.count, given.seed)
        return
    for word in given.only:
        path, _, line = word.partition(":")
        yield from (mutant for mutant in mutants_of(root, path) if not line or mutant.line == int(line))


def try_mutants(copy: Copy, given: argparse.Namespace) -> bool:
    kept, noticed, survived, harmless = read("equivalent.toml"), 0, [], 0
    # All from the copy: the tree may change meanwhile.
    root = copy.place / PACKAGE
    part, parts = map(int, given.part.split("/"))
    for number, mutant in list(enumerate(chosen(root, given), 1))[part - 1 :: parts]:
        source = (root / mutant.path).read_bytes()
        diff = mutant.diff(source)
        print(f"{number}. {mutant}\n{diff}", flush=True)
        why = explained(mutant, diff, kept)
        if why is not None:
            harmless += 1
            print(f"   equivalent: {why}", flush=True)
            continue
        if given.list:
            continue
        with copy.broken(mutant.path, mutant.apply(source)):
            trial = copy.test(files_for(mutant.path), given.timeout)
        if trial.failed is None:
            survived.append(mutant)
        else:
            noticed += 1
        print(
            f"   {'SURVIVED' if trial.failed is None else 'noticed: ' + trial.failed} ({trial.seconds:.0f} s)",
            flush=True,
        )
    tried = noticed + len(survived)
    print(f"\n{tried} tried, {noticed} noticed, {len(survived)} survived; {harmless} more are equivalent")
    for mutant in survived:
        print(f"survived: {mutant}\n{mutant.diff((root / mutant.path).read_bytes())}")
    return noticed >= ENOUGH * tried


def try_named(copy: Copy, given: argparse.Namespace) -> bool:
    well = True
    for one in read("breakages.toml"):
        source = (copy.place / PACKAGE / one["file"]).read_text()
        assert source.count(one["old"]) == 1, f"{one['file']} has {one['old']!r} {source.count(one['old'])} times"
        with copy.broken(one["file"], source.replace(one["old"], one["new"]).encode()):
            trial = copy.test(one["tests"], given.timeout)
        well &= trial.failed is not None
        verdict = "SURVIVED" if trial.failed is None else f"noticed: {trial.failed}"
        print(f"{one['what']}: {verdict} ({trial.seconds:.0f} s)", flush=True)
    return well


def whole(copy: Copy, given: argparse.Namespace) -> bool:
    """The tests of each room pass without any breakage; else it would be noticed whatever it is."""
    well = True
    for room in given.room or [*ROOMS, *OTHERS]:
        trial = copy.test(files_for(room), given.timeout)
        well &= trial.failed is None
        print(f"{room or '(the rest)'}: {trial.failed or 'pass'} ({trial.seconds:.0f} s)", flush=True)
        if trial.failed is not None:
            print(trial.output)
    return well


parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
parser.add_argument("--count", type=int, default=60, help="how many")
parser.add_argument("--seed", type=int, default=1, help="which")
parser.add_argument(
    "--part", default="1/1", metavar="K/N", help="the K-th of N parts of them, to be tried beside each other"
)
parser.add_argument("--room", action="append", help="only of this room")
parser.add_argument(
    "--only", nargs="+", metavar="FILE[:LINE]", help="all of this file or line, by its path in the package"
)
parser.add_argument(
    "--again", type=Path, metavar="REPORT", help="those that survived, by what an earlier run has printed"
)
parser.add_argument("--named", action="store_true", help="those of breakages.toml")
parser.add_argument("--whole", action="store_true", help="run the rooms' tests without any")
parser.add_argument("--list", action="store_true", help="only say which")
parser.add_argument("--timeout", type=float, default=600.0, help="seconds for the tests of one")
given = parser.parse_args()
with contextlib.ExitStack() as stack:
    copy = stack.enter_context(copied())
    attempt = try_named if given.named else whole if given.whole else try_mutants
    sys.exit(0 if attempt(copy, given) else 1)
