"""Runs real code of several threads in every interleaving of its steps.

The code's threading primitives are replaced by ones that call :meth:`Interleavings.point` before each operation that another
thread may notice. One thread runs at a time; at each point it is decided which goes on. The search is depth first, each run
repeats the decisions that lead to an untried one, and a state that was met before is not searched again. A state is what the
scenario says of it, and where each thread stands in the code, with its simple local variables.
"""

from __future__ import annotations

import _thread
import os
import random
import sys
import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

__all__ = ["Actor", "Interleavings"]

_SIMPLE = (int, float, str, type(None))


class _Left(BaseException):
    """This run ends here."""


class Actor:
    """A thread of the code under test."""

    def __init__(self, name: str, run: Callable[[], object]) -> None:
        self.name = name
        self.run = run
        self.done = False
        self.may_go_on: Callable[[], bool] | None = None
        self.go = threading.Lock()
        self.go.acquire()
        self.frame: FrameType | None = None
        self.place: Hashable = None
        self.over = threading.Lock()
        self.over.acquire()

    def where(self, known: Collection[str]) -> Hashable:
        """Its place in the code, as far as that decides what it does next."""
        if self.place is None and not self.done:
            found: list[Hashable] = []
            frame = self.frame
            while frame is not None and frame.f_code is not _BASE:
                values = tuple((k, v) for k, v in frame.f_locals.items() if k not in known and isinstance(v, _SIMPLE))
                found.append((frame.f_code, frame.f_lasti, values))
                frame = frame.f_back
            self.place = tuple(found)
        return self.place


class Interleavings:
    """All runs of a scenario.

    Args:
        scenario: Spawns the first threads; returns a function that describes the state that they share.
        known: Local variables whose values follow from where their thread stands, or matter no more there.

    Attributes:
        states: How many were met.
        steps: How many lead from one to another.
        runs: How many runs that took.
        met: What :meth:`meet` was told.
    """

    def __init__(
        self, scenario: Callable[[Interleavings], Callable[[], Hashable]], *, known: Collection[str] = ()
    ) -> None:
        self._scenario = scenario
        self._known = known
        self._untried: list[tuple[list[int], Hashable]] = [([], None)]
        self._follow: dict[Hashable, set[Hashable]] = {}
        self._ends: set[Hashable] = set()
        self._examples: dict[Hashable, tuple[list[int], int]] = {}
        self.runs = 0
        self.met: set[str] = set()

    @property
    def states(self) -> int:
        return len(self._follow)

    @property
    def steps(self) -> int:
        return sum(map(len, self._follow.values()))

    def explore(self, *, most: int | None = None) -> None:
        """Try everything, or so many runs, drawn at random from those that are left each time.

        Raises:
            AssertionError: What was noticed in a run, with its schedule; or no thread can go on; or the end can't be reached.
        """
        draw = random.Random(0)
        with _one_processor():
            while self._untried and (most is None or self.runs < most):
                if most is not None:
                    chosen = draw.randrange(len(self._untried))
                    self._untried[chosen], self._untried[-1] = self._untried[-1], self._untried[chosen]
                self._run(*self._untried.pop())
        if not self._untried:
            self._check_ends()

    def _check_ends(self) -> None:
        # A state from which no schedule leads to the end: the threads are busy, and somebody waits for ever.
        before: dict[Hashable, set[Hashable]] = {}
        for state, following in self._follow.items():
            for other in following:
                before.setdefault(other, set()).add(state)
        good, left = set(self._ends), list(self._ends)
        while left:
            for state in before.get(left.pop(), ()):
                if state not in good:
                    good.add(state)
                    left.append(state)
        for state in self._follow:
            trail, length = self._examples[state]
            assert state in good, f"no end after {self._told(trail[:length])}"

    # ---- one run -----------------------------------------------------------------------------------

    def _run(self, decided: list[int], last: Hashable) -> None:
        self.runs += 1
        self._decided, self._last = decided, last
        self._trail: list[int] = []
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self._leaving = False
        self._failure: BaseException | None = None
        self._left = False
        self._over = threading.Lock()
        self._over.acquire()
        self._state = self._scenario(self)
        self._hand_over()
        self._over.acquire()
        self._leaving = True
        for actor in self.actors:
            if not actor.done:
                self.current = actor
                actor.go.release()
            actor.over.acquire()
        if self._failure is not None:
            raise AssertionError(f"{self._failure!r} after {self._told(self._trail)}") from self._failure

    def _told(self, trail: list[int]) -> str:
        names: list[str] = []
        for index in trail:
            name = self.actors[index].name
            if names and names[-1].split(" ")[0] == name:
                names[-1] = f"{name} {int(names[-1].split(' ')[1]) + 1}"
            else:
                names.append(f"{name} 1")
        return ", ".join(names)

    def spawn(self, name: str, run: Callable[[], object]) -> Actor:
        """One more thread."""
        actor = Actor(name, run)
        self.actors.append(actor)
        _thread.start_new_thread(self._base, (actor,))
        return actor

    def meet(self, what: str) -> None:
        """Something has happened in one run at least."""
        self.met.add(what)

    def point(self, may_go_on: Callable[[], bool] | None = None) -> None:
        """The calling thread is about to do what others may notice.

        Args:
            may_go_on: Whether it can; else it waits until it can.
        """
        if self._leaving:
            raise _Left
        actor = self.current
        assert actor is not None
        actor.frame, actor.place, actor.may_go_on = sys._getframe(1), None, may_go_on
        self._hand_over()
        actor.frame = None

    def _base(self, actor: Actor) -> None:
        actor.go.acquire()
        try:
            if not self._leaving:
                actor.run()
        except _Left:
            pass
        except BaseException as exc:
            # What is raised while a run is left is of no account: clean-ups are cut short.
            if not self._leaving:
                self._failure = exc
                self._leaving = True
        actor.done, actor.frame, actor.place = True, None, "done"
        try:
            if self._leaving:
                self._leave()
            else:
                self._hand_over()
        finally:
            actor.over.release()

    def _leave(self) -> None:
        self._leaving = True
        if not self._left:
            self._left = True
            self._over.release()

    def _hand_over(self) -> None:
        """Decide which thread goes on; returns when the calling one does."""
        mine = self.current
        index = self._choose()
        if index is None:
            if mine is not None and not mine.done:
                # Ends by this, and tells whoever waits for the run.
                self._leaving = True
                raise _Left
            self._leave()
            return
        self._trail.append(index)
        chosen = self.actors[index]
        if chosen is mine:
            return
        self.current = chosen
        chosen.go.release()
        if mine is not None and not mine.done:
            mine.go.acquire()
            if self._leaving:
                raise _Left

    def _choose(self) -> int | None:
        if len(self._trail) < len(self._decided):
            return self._decided[len(self._trail)]
        state = (self._state(), tuple(actor.where(self._known) for actor in self.actors))
        if self._last is not None:
            self._follow[self._last].add(state)
        if state in self._follow:
            return None
        self._follow[state] = set()
        self._examples[state] = self._trail, len(self._trail)
        self._last = state
        able = [n for n, a in enumerate(self.actors) if not a.done and (a.may_go_on is None or a.may_go_on())]
        if not able:
            self._ends.add(state)
            waiting = [actor.name for actor in self.actors if not actor.done]
            if waiting:
                self._failure = AssertionError(f"{', '.join(waiting)} can't go on")
            return None
        # The one that runs goes on first: that costs no switch.
        able.sort(key=lambda n: self.actors[n] is not self.current)
        for other in able[1:]:
            self._untried.append(([*self._trail, other], state))
        return able[0]


_BASE: CodeType = Interleavings._base.__code__


@contextmanager
def _one_processor() -> Iterator[None]:
    """One thread runs at a time: on one processor the next is there sooner."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
