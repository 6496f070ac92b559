"""Where the exception is raised: in the host, in its workers, in their template, or in a client of the bridge."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.injection.plan import PLACE, Plan
from tests.injection.tracing import Injector, Target

__all__ = ["SIDES", "Side", "side_of"]

SIDES = ("host", "worker", "template", "client")


class Side(Protocol):
    """Counts entries, or raises on one."""

    def arm(self, target: Target | None, entry: int, portal: Any) -> None:
        """From now on; without a target it counts the entries of all. ``portal`` leads into the clients' thread."""

    def disarm(self) -> None:
        """Until the next time."""

    @property
    def counts(self) -> Mapping[Target, int]:
        """How often each function was entered."""

    @property
    def hit(self) -> list[str] | None:
        """The functions that were on the stack when it raised, the innermost first; None when it did not."""

    @property
    def spent(self) -> bool:
        """Whether the process can't be used for another try."""


class _Here:
    """This process: the host's thread and those that it starts, or the clients' thread."""

    def __init__(self, *, clients: bool) -> None:
        self._clients = clients
        self._injector = Injector((lambda target: True) if clients else _of_the_host)

    def arm(self, target: Target | None, entry: int, portal: Any) -> None:
        # A thread in which it raised is not traced any more.
        if self._clients:
            portal.call(lambda: self._injector.install(later=False))
        else:
            self._injector.install(later=True)
        self._injector.arm(target, entry)

    def disarm(self) -> None:
        self._injector.disarm()

    @property
    def counts(self) -> Mapping[Target, int]:
        return self._injector.counts

    @property
    def hit(self) -> list[str] | None:
        return None if self._injector.raised_in is None else self._injector.path

    @property
    def spent(self) -> bool:
        return not self._clients and self._injector.raised_in not in (None, threading.main_thread())


def _of_the_host(target: Target) -> bool:
    """The clients are in this process, too."""
    return not target.file.startswith(("client/", "control/client", "cli/", "testing/"))


class _Below:
    """Processes that this one starts from now on."""

    def __init__(self, side: str) -> None:
        self._side = side
        place = Path(tempfile.mkdtemp(prefix="plan-"))
        os.environ[PLACE] = str(place)
        self._plan = Plan(place)

    def arm(self, target: Target | None, entry: int, portal: Any) -> None:
        self._plan.want(self._side, target, entry)

    def disarm(self) -> None:
        self._plan.rest()

    @property
    def counts(self) -> Mapping[Target, int]:
        return self._plan.counted()

    @property
    def hit(self) -> list[str] | None:
        found = self._plan.claimed()
        return None if found is None else found.get("path", [])

    @property
    def spent(self) -> bool:
        # A template in which it raised is not traced any more, and no other comes unless it has ended.
        return self._side == "template" and self.hit is not None


def side_of(name: str) -> Side:
    """The side of this name. For one of the processes below it comes before they are started."""
    return _Below(name) if name in ("worker", "template") else _Here(clients=name == "client")
