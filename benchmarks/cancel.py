"""How soon a cancelled call lets its caller go, and how soon its worker takes the next call.

python benchmarks/cancel.py [--calls 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import anyio
import anyio.lowlevel

import snakepit_trio as sp


@sp.tool
async def wait() -> None:
    """An async tool that never ends by itself."""
    await anyio.sleep_forever()


@sp.tool
async def nothing() -> None:
    """The next call."""


def percentiles(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {f"p{p}_us": values[min(len(values) - 1, int(len(values) * p / 100))] * 1e6 for p in (50, 90, 99)}


async def measure(calls: int) -> dict[str, dict[str, float]]:
    left, taken = [], []
    async with sp.open_pool("cancel", size=1) as pool:
        await pool.execute("nothing")
        for _ in range(calls):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as nursery:
                    nursery.start_soon(pool.execute, "wait")
                    while not pool.stats().in_flight:
                        await anyio.lowlevel.checkpoint()
                    await anyio.sleep(0.001)
                    begun = time.perf_counter()
                    scope.cancel()
            left.append(time.perf_counter() - begun)
            await pool.execute("nothing")
            taken.append(time.perf_counter() - begun)
        assert pool.stats().restarts == 0
    return {"cancel to the end of the scope": percentiles(left), "cancel to the next call's result": percentiles(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {backend: anyio.run(measure, options.calls, backend=backend) for backend in ("trio", "asyncio")}
    for backend, rows in found.items():
        for name, row in rows.items():
            print(f"{backend:8} {name:34} " + "  ".join(f"{key[:-3]} {value:6.0f} us" for key, value in row.items()))
    print(
        f"{options.calls} calls to one worker; {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
