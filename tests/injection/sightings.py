"""Who has been told of the exception that was raised: the runtime's report of internal errors, a log, or Python itself."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from typing import Any

from snakepit_trio._bulkhead import InternalErrors
from tests.injection.tracing import Injected

__all__ = ["Sightings", "tells_of_it"]

#: Its class, or what it says.
_TEXT = re.compile(rf"\b{Injected.__name__}\b|\bon entry [0-9]+ to ")


def tells_of_it(exc: BaseException | None) -> bool:
    """Whether an exception is the one that was raised, has come of it, holds it, or has its text."""
    seen: set[int] = set()
    left = [exc]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Injected) or _TEXT.search(str(one)):
            return True
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
    return False


class Sightings(logging.Handler):
    """Listens in this process, also to what its workers print.

    Attributes:
        found: Where the exception was told of, each place once, since :meth:`clear`.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[str] = []

    def install(self) -> None:
        """For the rest of this process."""
        logger = logging.getLogger("snakepit_trio")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        for loop in ("trio", "asyncio"):
            logging.getLogger(loop).addHandler(self)
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)
        InternalErrors.check = staticmethod(self._reported)
        sys.unraisablehook = self._unraisable

    def clear(self) -> None:
        """For another try."""
        self.found = []

    def add(self, where: str) -> None:
        """It was told of there."""
        if where not in self.found:
            self.found.append(where)

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[1] if record.exc_info else None
        if _TEXT.search(record.getMessage()) or tells_of_it(raised):
            self.add(f"log: {record.name}")

    def _reported(self, exc: BaseException, ended: str) -> None:
        if tells_of_it(exc):
            self.add(f"report: {ended}")

    def _unraisable(self, hook: Any) -> None:
        # In a finalizer or a weak reference's callback nobody else can be told.
        if tells_of_it(hook.exc_value):
            self.add("unraisable")
        traceback.print_exception(hook.exc_value)
