"""One exception in the host, on entry to one function, while a simulation runs: what it may not do to the rest.

``python -m tests.simulation.injection [--seeds 1,2] [--only REGEX]`` tries each function that the scenarios of these seeds enter.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Iterator

from tests.injection.tracing import Injector, Target
from tests.injection.verdict import CALLED, may_end_it

__all__ = ["Injection", "attempt", "entered", "tries"]

#: What a pool is made of; what is below is made of bytes, and tested with real ones.
_ROOMS = ("pool/", "policies/", "sessions/", "tools/", "supervision/", "supervision/", "observe/", "runtime.py", "_")


#: Seconds after an exception in which what it has ended may not have been noticed everywhere; a service that fails pauses, too.
_MENDING = 1.0


class Injection:
    """Counts the entries of functions between the moment when the runtime is open and when it closes, or raises on one.

    Args:
        target: The function; None: none, all are counted.
        entry: Which entry of it.
    """

    def __init__(self, target: Target | None = None, entry: int = 0) -> None:
        self.target = target
        self.entry = entry
        self.injector = Injector(lambda found: found.file.startswith(_ROOMS))
        self._since: float | None = None

    @property
    def raised(self) -> bool:
        """Whether it has."""
        return self.injector.raised_in is not None

    @property
    def called(self) -> bool:
        """Whether it is raised by what somebody calls, so to speak."""
        return self.target is not None and (self.target.file, self.target.name) in CALLED

    def mending(self, now: float) -> bool:
        """Whether it has been raised just now."""
        if not self.raised:
            return False
        if self._since is None:
            self._since = now
        return now < self._since + _MENDING

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What the test itself calls is not meant."""
        active, self.injector.active = self.injector.active, False
        try:
            yield
        finally:
            self.injector.active = active

    def begin(self) -> None:
        """The runtime is open."""
        self.injector.install(later=False)
        self.injector.arm(self.target, self.entry)

    def end(self) -> None:
        """It closes, or has failed."""
        if sys.gettrace() is not None:
            self.injector.disarm()
            sys.settrace(None)


def entered(seed: int) -> dict[Target, int]:
    """How often each function is entered in the scenario of a seed, without its faults."""
    from .scenario import draw
    from .simulator import run

    counting = Injection()
    result = run(draw(seed).only(faults=set()), counting)
    if result.failure is not None:
        raise result.failure
    return dict(counting.injector.counts)


def tries(seeds: list[int], only: str = "", entries: tuple[int, ...] = (1, 3)) -> Iterator[tuple[int, Target, int]]:
    """A seed for each entry of each function: the first that comes to it."""
    found: dict[tuple[Target, int], int] = {}
    for seed in seeds:
        for target, count in entered(seed).items():
            name = target.file, target.name
            # A lazy import happens once in a process.
            if re.search(only, " ".join(name)) and not may_end_it(target) and target.name != "__getattr__":
                for entry in entries:
                    if count >= entry:
                        found.setdefault((target, entry), seed)
    for (target, entry), seed in sorted(found.items()):
        yield seed, target, entry


def attempt(seed: int, target: Target, entry: int) -> str | None:
    """Raise on this entry in the scenario of this seed; what does not hold then, None when all does."""
    from .scenario import draw
    from .simulator import leaf, run

    injection = Injection(target, entry)
    failure = leaf(run(draw(seed).only(faults=set()), injection).failure)
    if failure is not None:
        came = "  <  ".join(injection.injector.path[:8])
        return f"seed {seed}: {target} #{entry}: {type(failure).__name__}: {str(failure)[:300]}\n    {came}"
    # A function whose results are cached may not be entered again.
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.injection", description=__doc__)
    parser.add_argument("--seeds", default="1,2,3,4,5,6,7,8")
    parser.add_argument("--only", default="")
    parser.add_argument("--entries", default="1,3")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    seeds = [int(text) for text in options.seeds.split(",")]
    entries = tuple(int(text) for text in options.entries.split(","))
    tried = failed = 0
    for seed, target, entry in tries(seeds, options.only, entries):
        found = attempt(seed, target, entry)
        tried += 1
        if found is not None:
            failed += 1
            print(found, flush=True)
    print(f"{tried} tries, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
