"""Raises inside of workers and templates, as the plan says. The adapters of the scenario import it."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

from tests.injection.plan import PLACE, Plan, Wish
from tests.injection.tracing import Injected, Target, entry_of, stack_of

__all__: list[str] = []

#: Entries that are told of in a run that counts.
_TOLD = (1, 3)


class _Inside:
    """Traces one process."""

    def __init__(self, plan: Plan, side: str) -> None:
        self.plan = plan
        self.side = side
        self.counts: Counter[Target] = Counter()
        self.wish: Wish = plan.wish()
        self.known: dict[int, tuple[Target, int] | None] = {}
        self.kept: list[object] = []

    def start(self) -> None:
        threading.settrace(self.trace)
        sys.settrace(self.trace)

    def trace(self, frame: FrameType, event: str, arg: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        try:
            known = self.known[id(code)]
        except KeyError:
            target = Target.of(code)
            known = None if target is None else (target, entry_of(code) or 0)
            self.kept.append(code)
            self.known[id(code)] = known
        if known is None:
            return
        if self.plan.changed(self.wish.number):
            self.wish = self.plan.wish()
            self.counts.clear()
        wish = self.wish
        target, entry = known
        if wish.side != self.side or frame.f_lasti != entry:
            return
        if wish.target is not None and not wish.target.fits(target):
            return
        self.counts[target] += 1
        count = self.counts[target]
        if wish.target is None:
            if count in _TOLD:
                self.plan.note(wish.number, target, count)
        elif count == wish.entry and self.plan.claim(wish.number, stack_of(frame)):
            raise Injected(f"on entry {wish.entry} to {target}")


def _begin() -> None:
    place = os.environ.get(PLACE)
    if not place:
        return
    plan = Plan(Path(place))
    main = sys.modules["__main__"].__spec__
    if main is not None and main.name == "snakepit_trio.launch.template":
        _Inside(plan, "template").start()
        os.register_at_fork(after_in_child=lambda: _Inside(plan, "worker").start())
    else:
        _Inside(plan, "worker").start()


_begin()
