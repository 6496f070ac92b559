"""The Python functions that one plain ``pool.execute`` runs in the host, in their order: how long its way is.

    python -m benchmarks.call_walk
    python -m benchmarks.call_walk --files

The call is one of many, to an idle worker; the event loop's own functions are not counted, nor is what others do meanwhile. A test
holds a bound on both numbers, because each function costs every call.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import trio

import snakepit_trio as sp

__all__ = ["walk"]

#: Code whose frames are resumed: generators, coroutines, asynchronous generators.
_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
PACKAGE = str(Path(sp.__file__).parent) + "/"


@sp.tool
def echo(data: bytes) -> bytes:
    """What is called."""
    return data


async def _walk() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            # A coroutine or generator is entered again each time when it is resumed.
            if code.co_flags & _RESUMED and frame.f_lineno != code.co_firstlineno:
                return
            found.append((code.co_filename.removeprefix(PACKAGE), code.co_qualname))

    async with sp.open_pool("benchmarks.call_walk", size=1, heartbeat_interval=60, health_interval=60) as pool:
        for _ in range(50):
            await pool.execute("echo", {"data": b"x" * 64})
        sys.setprofile(note)
        try:
            await pool.execute("echo", {"data": b"x" * 64})
        finally:
            sys.setprofile(None)
    return found


def walk() -> list[tuple[str, str]]:
    """The file, below the package, and the qualified name of each function that was called, in order."""
    return trio.run(_walk)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="how many calls in each file")
    parser.add_argument("--json", action="store_true", help="as a list of pairs")
    options = parser.parse_args()
    found = walk()
    if options.json:
        print(json.dumps(found))
        return
    if options.files:
        for file, count in Counter(file for file, _ in found).most_common():
            print(f"{count:4} {file}")
    else:
        for file, name in found:
            print(f"{file:45} {name}")
    print(f"{len(found)} calls in {len({file for file, _ in found})} files")


if __name__ == "__main__":
    main()
