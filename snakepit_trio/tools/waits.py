"""Nested calls: their depth, and the detection of waits that can never end.

Theory of operation ------------------- A tool that calls its host holds its worker's seat while it waits; the host tool
may call a pool, and so on. The *chain* of such a call is everything that can't continue before it does: requests, which
hold seats; host calls, which may hold threads; and the permits of limits under which those requests run. A *waiter* is
a call with a chain that waits for a seat, a thread or a permit; a permit alone makes a chain.

A waiter is stuck if everything that it waits for is held by members of the chains of stuck waiters. To find the largest
such set, begin with all waiters and repeatedly remove those for which something may come free. A wait can become stuck
when a waiter joins (then the new waiter is in the set, and is refused), or when a seat goes away: the code that removes
a seat calls :meth:`Waits.check`.

A cancelled call that does not stop holds its seat and its permits until its worker ends, and the worker continues for
the calls beside it. So its seat and permits come free only after all of these have ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from snakepit_trio._tasks import is_under
from snakepit_trio.errors import WouldDeadlock

__all__ = ["CHAIN", "DEEPEST", "Permit", "Waits", "check_depth", "current_chain"]

#: The largest depth of nested calls.
DEEPEST = 16

#: The chain of calls made by this task; empty for a task that no worker waits for.
CHAIN: ContextVar[tuple[Any, ...]] = ContextVar("snakepit_chain", default=())

_Hopeless = Callable[[Container[object]], bool]
#: A waiter's chain, a predicate (is the wait hopeless while these are blocked?), and a function that refuses the wait.
_Wait = tuple[tuple[Any, ...], _Hopeless, Callable[[], object]]


class Stopping(Protocol):
    """A request whose tool has not stopped yet."""

    def stops_after(self, blocked: Container[object]) -> bool:
        """Return whether the tool stops only after one of these has ended."""


class Permit:
    """A call's permit of a concurrency limit, held by the call and by each of its requests whose tool has not stopped.

    Args:
        give_back: Called with the permit when it has no holder any more.
    """

    __slots__ = ("_give_back", "_holders")

    def __init__(self, give_back: Callable[[Permit], object]) -> None:
        self._give_back = give_back
        # None stands for the call itself.
        self._holders: dict[Stopping | None, None] = {None: None}

    def hold(self, request: Stopping) -> None:
        """Add a holder."""
        self._holders[request] = None

    def leave(self, request: Stopping | None = None) -> None:
        """Remove a holder. If this raises, the holder remains and may be removed again."""
        if len(self._holders) == 1:
            self._give_back(self)
        del self._holders[request]

    def is_kept(self, blocked: Container[object]) -> bool:
        """Return whether the permit is given back only after one of these has ended."""
        return self in blocked or all(holder is not None and holder.stops_after(blocked) for holder in self._holders)


def current_chain() -> tuple[Any, ...]:
    """Return the chain of this task's calls.

    The chain is empty once the host tool in which the task began has ended, and for a task that a host tool has started
    in another owner's nursery.
    """
    chain = CHAIN.get()
    return chain if chain and not chain[-1].over and is_under(chain[-1].task) else ()


def check_depth(chain: tuple[Any, ...], tool: str) -> None:
    """Refuse a call that is nested too deeply.

    Raises:
        WouldDeadlock: The depth is above the limit.
    """
    # Each level is a request and a host call.
    depth = sum(not isinstance(link, Permit) for link in chain) // 2
    if depth >= DEEPEST:
        raise WouldDeadlock(
            f"{tool!r} is called by a tool that was called by a tool, {depth} deep",
            details={"tool": tool, "depth": depth, "limit": DEEPEST},
        )


class Waits:
    """The waiters of one runtime, oldest first."""

    def __init__(self) -> None:
        self._waiters: dict[Any, _Wait] = {}
        self._links: Counter[Any] = Counter()

    def __repr__(self) -> str:
        return f"<Waits {len(self._waiters)}>"

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, waiter: Any, chain: tuple[Any, ...], hopeless: _Hopeless, refuse: Callable[[], object]) -> None:
        """Add a waiting call with a chain. The call is refused at once if the wait would never end.

        Args:
            waiter: The call.
            chain: Its chain.
            hopeless: Returns whether everything that the call waits for is held by the given members.
            refuse: Ends the wait with an error; the waiter has been removed before.
        """
        self._waiters[waiter] = chain, hopeless, refuse
        self._links.update(chain)
        # The members of all chains, stuck or not, are enough to show that most waits are harmless.
        if hopeless(self._links) and waiter in self._stuck():
            self.remove(waiter)
            refuse()

    def remove(self, waiter: Any) -> None:
        """Remove a waiter, if it is there."""
        found = self._waiters.pop(waiter, None)
        if found is not None:
            links = self._links
            for link in found[0]:
                links[link] -= 1
                if not links[link]:
                    del links[link]

    def check(self) -> None:
        """After a seat, thread or permit has gone away, refuse waiters until no remaining one would wait for ever.

        The newest stuck waiter for which others wait is refused first; waiters that only wait behind it continue.
        """
        while self._waiters and (stuck := self._stuck()):
            waiter = _newest_in_the_way(stuck)
            refuse = stuck[waiter][2]
            self.remove(waiter)
            refuse()

    def _stuck(self) -> dict[Any, _Wait]:
        stuck = dict(self._waiters)
        while stuck:
            blocked = {link for chain, _, _ in stuck.values() for link in chain}
            free = [waiter for waiter, (_, hopeless, _) in stuck.items() if not hopeless(blocked)]
            if not free:
                break
            for waiter in free:
                del stuck[waiter]
        return stuck


def _newest_in_the_way(stuck: Mapping[Any, _Wait]) -> Any:
    """Return the newest stuck waiter that holds something, itself or through its waiters, for which a stuck waiter waits."""
    blocked = {link for chain, _, _ in stuck.values() for link in chain}
    needed = {link for link in blocked if any(not hopeless(blocked - {link}) for _, hopeless, _ in stuck.values())}
    return next(
        (waiter for waiter in reversed(stuck) if not needed.isdisjoint(stuck[waiter][0])), next(reversed(stuck))
    )
