"""Prints a table of what has come of tries: ``python -m tests.injection.table out.json ...``, with files that ``--json`` has written.

A function that was tried again, as after it was mended, counts as it came out last.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.injection.verdict import EXCEPTED, is_good, outcome

_ENDED = ("runtime ended", "hang", "process died")
#: What may become of a try, in the order of the columns.
_COLUMNS = {
    "survived": ("survived", "not reached"),
    "the caller's error": (
        "internal error for its caller", "raised by the function that was called", "call failed", "raised to the application",
        "worker not replaced at its owner's request",
    ),
    "worker replaced": ("worker replaced",),
    "connection closed": ("connection closed",),
}  # fmt: skip


def last(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last of each function's entry. Lines move, so they only tell functions apart that have no name."""
    found = {}
    for row in rows:
        file, name, line, entry = row["target"]
        found[row["side"], row["phase"], row["backend"], file, name, entry, line if name.endswith(">") else 0] = row
    return [*found.values()]


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The table, in Markdown."""
    kinds: dict[tuple[str, str, str, int], list[dict[str, Any]]] = {}
    for row in last(rows):
        kinds.setdefault((row["side"], row["phase"], row["backend"], row["target"][3]), []).append(row)
    yield f"| side | phase | event loop | entry | functions | {' | '.join(_COLUMNS)} | excepted | faults | ended the runtime |"
    yield "|---" * (8 + len(_COLUMNS)) + "|"
    for (side, phase, backend, entry), found in sorted(kinds.items()):
        outcomes = Counter(outcome(row) for row in found if is_good(row, phase))
        cells = [str(sum(outcomes[name] for name in names)) for names in _COLUMNS.values()]
        excepted = outcomes.total() - sum(map(int, cells))
        over = sum(outcomes[name] for name in _ENDED)
        bad = [row for row in found if not is_good(row, phase)]
        ended = sum(outcome(row) in _ENDED for row in bad)
        first = [side, phase, backend, str(entry), str(len(found))]
        after = [f"{excepted} ({over} ended it)" if over else str(excepted), str(len(bad)), str(ended)]
        yield f"| {' | '.join(first + cells + after)} |"


def _rows(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line in Path(path).read_text().splitlines():
            yield json.loads(line)


def main() -> None:
    """Print the table, then what was excepted, and faults."""
    rows = list(_rows(sys.argv[1:]))
    print("\n".join(lines(rows)))
    for row in last(rows):
        file, name, line, entry = row["target"]
        words = f"{outcome(row)}: {file}:{line} {name} #{entry} ({row['side']}, {row['phase']}, {row['backend']})"
        if not is_good(row, row["phase"]):
            print(f"fault: {words}")
        elif (file, name) in EXCEPTED and outcome(row) in EXCEPTED[file, name][0]:
            print(f"excepted: {words}: {EXCEPTED[file, name][1]}")


if __name__ == "__main__":
    main()
