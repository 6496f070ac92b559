"""Counts the entries of the package's functions, and raises on one of them."""

from __future__ import annotations

import dis
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType

import attrs

import snakepit_trio

__all__ = ["Injected", "Injector", "Target", "depth_of", "entry_of", "stack_of"]

_PACKAGE = os.path.dirname(os.path.abspath(snakepit_trio.__file__)) + os.sep
#: Parts of another function rather than functions that somebody calls, and what runs at import.
_PARTS = frozenset({"<module>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"})


class Injected(RuntimeError):
    """What no code expects."""


@attrs.frozen(order=True)
class Target:
    """A function of the package.

    Attributes:
        file: Its module's path, relative to the package.
        name: Its qualified name.
        line: Its first line; 0 in a wish: whatever it is.
    """

    file: str
    name: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.name}"

    def fits(self, found: Target) -> bool:
        """Whether this wish is for that function."""
        return (self.file, self.name) == (found.file, found.name) and self.line in (0, found.line)

    @classmethod
    def of(cls, code: CodeType) -> Target | None:
        """None for what is not the package's, and for what is no function."""
        if not code.co_filename.startswith(_PACKAGE) or code.co_name in _PARTS or entry_of(code) is None:
            return None
        if not code.co_flags & 0x2:  # A class's body: its locals are a namespace.
            return None
        return cls(code.co_filename.removeprefix(_PACKAGE), code.co_qualname, code.co_firstlineno)


def entry_of(code: CodeType) -> int | None:
    """Where a call begins; a generator and a coroutine are entered there once, and resumed elsewhere."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "RESUME" and not instruction.arg:
            return instruction.offset
    return None


class Injector:
    """Counts, or raises once, in the threads in which it is installed.

    Args:
        wanted: Says whether a function counts.

    Attributes:
        counts: How often each function was entered.
        raised_in: The thread in which it raised, None before.
        active: Whether it counts, or may raise, now.
        path: The functions of the package that were on the stack then, the innermost first.
    """

    def __init__(self, wanted: Callable[[Target], bool]) -> None:
        self.counts: Counter[Target] = Counter()
        #: The exception, once it was raised.
        self.raised: Injected | None = None
        self.raised_in: threading.Thread | None = None
        self.path: list[str] = []
        self._wanted = wanted
        self._target: Target | None = None
        self._entry = 0
        self.active = False
        # By id, for a code object's own hash is dear; each is kept, so that its id stays its own.
        self._known: dict[int, tuple[Target, int] | None] = {}
        self._kept: list[CodeType] = []
        #: Those that are not looked for now.
        self._others: set[int] = set()
        self._trace = self._tracer()

    def install(self, *, later: bool) -> None:
        """Trace this thread, and with ``later`` those that are started from now on."""
        if later:
            threading.settrace(self._trace)
        sys.settrace(self._trace)

    def arm(self, target: Target | None, entry: int = 0) -> None:
        """Raise on this entry, counted from now; without a target, count the entries of all."""
        self.counts.clear()
        self._others.clear()
        self._target, self._entry, self.raised_in, self.path = target, entry, None, []
        self.active = True

    def disarm(self) -> None:
        """Neither count nor raise."""
        self.active = False

    def _tracer(self) -> Callable[[FrameType, str, object], None]:
        """The trace function: most of what it costs is what it costs for functions that are not looked for."""
        others, entered = self._others, self._entered

        def trace(frame: FrameType, event: str, arg: object) -> None:
            if id(frame.f_code) not in others:
                entered(frame)

        return trace

    def _entered(self, frame: FrameType) -> None:
        if not self.active:
            return
        code = frame.f_code
        try:
            known = self._known[id(code)]
        except KeyError:
            target = Target.of(code)
            known = None
            if target is not None and self._wanted(target):
                known = target, entry_of(code) or 0
            self._kept.append(code)
            self._known[id(code)] = known
        wish = self._target
        if known is None or not (wish is None or wish is known[0] or wish.fits(known[0])):
            self._others.add(id(code))
            return
        target, entry = known
        if frame.f_lasti != entry:
            return
        self.counts[target] += 1
        if wish is not None and self.counts[target] == self._entry and self.raised_in is None:
            self.raised_in = threading.current_thread()
            self.path = stack_of(frame)
            self.raised = Injected(f"on entry {self._entry} to {target}")
            raise self.raised


def depth_of(exc: BaseException) -> int:
    """Through how many of the package's functions it has come."""
    found, traceback = 0, exc.__traceback__
    while traceback is not None:
        found += traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE)
        traceback = traceback.tb_next
    return found


def stack_of(frame: FrameType | None) -> list[str]:
    """The package's functions that are on the stack, the innermost first."""
    found = []
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE):
            found.append(f"{code.co_filename.removeprefix(_PACKAGE)}:{frame.f_lineno} {code.co_qualname}")
        elif not found or found[-1] != "...":
            found.append("...")
        frame = frame.f_back
    return found
