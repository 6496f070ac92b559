"""Calls that wait while workers' tools wait for them: how deep they lie, and whether a wait can ever end.

Theory of operation
-------------------
A tool that calls its host waits, and holds its worker's seat meanwhile; a host tool may call a pool, and so on. The *chain*
of such a call is whoever can't go on before it does: requests, which hold seats, and host calls, which may hold threads,
in turns; and the permits of limits under which those requests run. A *waiter* is a call with a chain that waits for a seat, a
thread or a permit; a call that holds a permit has a chain for that alone.

A waiter is stuck when everything that it waits for is held by members of the chains of stuck waiters. The largest such set
is found by beginning with all waiters and taking out, again and again, those for which something may come free. A wait
can become stuck when a waiter joins (then the new one is in the set, and is refused), or when a seat goes away: whoever
takes one away asks for :meth:`Waits.check`.

A cancelled call that does not stop holds its seat and its permits until its worker ends, and that is left to the calls which
run beside it. So what it holds comes free only after all of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from snakepit_trio._tasks import is_under
from snakepit_trio.errors import WouldDeadlock

__all__ = ["CHAIN", "DEEPEST", "Permit", "Waits", "check_depth", "current_chain"]

#: How many calls of workers and host tools may lie inside one another.
DEEPEST = 16

#: The chain of what this task calls; empty for a task that no worker waits for.
CHAIN: ContextVar[tuple[Any, ...]] = ContextVar("snakepit_chain", default=())

_Hopeless = Callable[[Container[object]], bool]
#: A waiter's chain, whether it is hopeless while these are blocked, and how it is refused.
_Wait = tuple[tuple[Any, ...], _Hopeless, Callable[[], object]]


class Stopping(Protocol):
    """A request whose tool has yet to stop."""

    def stops_after(self, blocked: Container[object]) -> bool:
        """Whether it stops only after one of these has ended."""


class Permit:
    """What a call holds of a limit of calls at once: it, and each of its requests whose tool has yet to stop.

    Args:
        give_back: Called with the permit when nobody holds it any more.
    """

    __slots__ = ("_give_back", "_holders")

    def __init__(self, give_back: Callable[[Permit], object]) -> None:
        self._give_back = give_back
        # None: the call itself.
        self._holders: dict[Stopping | None, None] = {None: None}

    def hold(self, request: Stopping) -> None:
        """One more holds it."""
        self._holders[request] = None

    def leave(self, request: Stopping | None = None) -> None:
        """One of those that hold it does so no longer. If that raises, it is held still, and may be left again."""
        if len(self._holders) == 1:
            self._give_back(self)
        del self._holders[request]

    def is_kept(self, blocked: Container[object]) -> bool:
        """Whether it comes back only after one of these has ended."""
        return self in blocked or all(holder is not None and holder.stops_after(blocked) for holder in self._holders)


def current_chain() -> tuple[Any, ...]:
    """Whoever waits for what this task does: nobody, once the host tool that it began in is over, and nobody for a task that a
    host tool has started in a nursery of somebody else's."""
    chain = CHAIN.get()
    return chain if chain and not chain[-1].over and is_under(chain[-1].task) else ()


def check_depth(chain: tuple[Any, ...], tool: str) -> None:
    """Refuse a call that lies too deep.

    Raises:
        WouldDeadlock: It does.
    """
    # A request and a host call for each level.
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
        """A call with a chain begins to wait. It is refused at once when that would never end.

        Args:
            waiter: The call.
            chain: Whoever can't go on before it does.
            hopeless: Whether all that it waits for is held by these.
            refuse: Ends the wait with an error. It has been removed by then.
        """
        self._waiters[waiter] = chain, hopeless, refuse
        self._links.update(chain)
        # Most waits are seen to be harmless by the members of all chains, stuck or not.
        if hopeless(self._links) and waiter in self._stuck():
            self.remove(waiter)
            refuse()

    def remove(self, waiter: Any) -> None:
        """It waits no longer. Does nothing when it did not."""
        found = self._waiters.pop(waiter, None)
        if found is not None:
            links = self._links
            for link in found[0]:
                links[link] -= 1
                if not links[link]:
                    del links[link]

    def check(self) -> None:
        """Something that was waited for has gone: refuse, of those that would wait for ever, the newest for which others wait,
        until none would. Whoever only waits behind them goes on."""
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
    """The newest of these waiters that holds something, itself or by those who wait for it, which one of them waits for."""
    blocked = {link for chain, _, _ in stuck.values() for link in chain}
    needed = {link for link in blocked if any(not hopeless(blocked - {link}) for _, hopeless, _ in stuck.values())}
    return next(
        (waiter for waiter in reversed(stuck) if not needed.isdisjoint(stuck[waiter][0])), next(reversed(stuck))
    )
