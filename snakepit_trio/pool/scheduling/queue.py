"""The queue of a pool: bounded, by priority with aging, fair, with a lane for each worker to which requests are pinned.

Theory of operation ------------------- A *lane* holds the requests that the same workers may run: one lane for requests
that any worker may run, and one for each worker to which requests are pinned. A lane has a *level* for each waiting
priority. A level is first in, first out; in a fair queue it rotates through its shares (sessions or tenants), over all
lanes.

With aging, a request gains one level of priority for each ``aging`` seconds of its wait. This never changes the order
of two requests: the one with the smaller ``arrival / aging - priority`` goes first, now and later. The first of a level
is its best, so the next request is found by comparing the first of each level: O(number of waiting priorities), which
is O(1) in the number of requests.

Requests of one session never overtake each other. When a session's turn comes through a request that has an older one
in the same session, the older one takes the turn.

A *client*, a connection of the bridge, may have as many waiting requests as it leaves places for others: half for a
single client, a third for each of two, a tenth for each of nine. So no client fills the queue for the others, or for
the host's own callers. (This is the dynamic threshold by which switches share their buffers: Choudhury and Hahne,
https://doi.org/10.1109/90.664262)

Removal marks a place as dead; a level drops its dead places when they outnumber the living ones, so memory is bounded
by the waiting requests.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from snakepit_trio.errors import QueueFull

__all__ = ["Queued", "RequestQueue"]


class Queued(Protocol):
    """An entry of a queue, which owns the attribute ``queue_node``."""

    priority: int
    session: str | None
    fairness_key: str | None
    binding: Any
    pin: Any
    client: Hashable | None
    queue_node: Any


E = TypeVar("E", bound=Queued)


class _Node(Generic[E]):
    """A place in the queue."""

    __slots__ = ("arrival", "entry", "lane", "level", "number")

    def __init__(self, entry: E, number: int, arrival: float) -> None:
        self.entry: E | None = entry
        self.number = number
        self.arrival = arrival
        self.lane: _Lane[E]
        self.level: _Level[E]


class _Level(Generic[E]):
    """The requests of one priority in one lane."""

    __slots__ = ("dead", "live", "shares", "turns")

    def __init__(self) -> None:
        # The shares in the order of their turns. Without fairness there is one share, None.
        self.shares: dict[Hashable, deque[_Node[E]]] = {}
        self.turns: dict[Hashable, int] = {}
        self.live = 0
        self.dead = 0

    def put(self, node: _Node[E], share: Hashable, turn: int) -> None:
        places = self.shares.get(share)
        if places is None:
            places = self.shares[share] = deque()
            self.turns[share] = turn
            for other in [other for other, its in self.turns.items() if its > turn]:
                # It keeps its turn from another lane.
                self.shares[other] = self.shares.pop(other)
                self.turns[other] = self.turns.pop(other)
        if places and places[-1].number > node.number:
            # It returns, or comes from another lane; it is usually among the first, so its place is found quickly.
            index = 0
            while places[index].number < node.number:
                index += 1
            places.insert(index, node)
        else:
            places.append(node)
        self.live += 1

    def first(self) -> _Node[E] | None:
        while self.shares:
            share, places = next(iter(self.shares.items()))
            while places and places[0].entry is None:
                places.popleft()
                self.dead -= 1
            if places:
                return places[0]
            del self.shares[share], self.turns[share]
        return None

    def next_turn(self) -> int:
        """Return the turn of :meth:`first`."""
        return next(iter(self.turns.values()))

    def oldest(self) -> float:
        """Return the arrival of the oldest entry, which may not be the next."""
        firsts = (next((node for node in places if node.entry is not None), None) for places in self.shares.values())
        return min((node.arrival for node in firsts if node is not None), default=math.inf)

    def drop(self) -> None:
        """Record that a place has died."""
        self.live -= 1
        self.dead += 1
        if self.dead > 32 and self.dead > self.live:
            for share, places in list(self.shares.items()):
                living = deque(node for node in places if node.entry is not None)
                if living:
                    self.shares[share] = living
                else:
                    del self.shares[share], self.turns[share]
            self.dead = 0

    def turn(self, turn: int) -> None:
        """Move the share that had its turn to the end."""
        share, places = next(iter(self.shares.items()))
        del self.shares[share], self.turns[share]
        self.shares[share], self.turns[share] = places, turn


class _Lane(Generic[E]):
    """The requests that the same workers may run."""

    __slots__ = ("levels", "live")

    def __init__(self) -> None:
        self.levels: dict[int, _Level[E]] = {}
        self.live = 0


class RequestQueue(Generic[E]):
    """The queue of one pool.

    Args:
        max_queue: The largest number of waiting requests; None: no limit, 0: none may wait.
        aging: Seconds of waiting that raise the priority by one; None: no aging.
        fair: Requests of the same priority take turns by their ``fairness_key``.

    Attributes:
        live: The number of waiting requests; the same as ``len()``, but faster.
    """

    def __init__(self, *, max_queue: int | None = None, aging: float | None = None, fair: bool = False) -> None:
        self._limit = math.inf if max_queue is None else max_queue
        self._aging = aging
        self._fair = fair
        self._any: _Lane[E] = _Lane()
        self._pinned: dict[Any, _Lane[E]] = {}
        self._sessions: dict[str, OrderedDict[_Node[E], None]] = {}
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self.live: int = 0
        # The number of waiting requests of each client.
        self._clients: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return self.live

    def __repr__(self) -> str:
        return f"<RequestQueue {self.live} waiting, {len(self._pinned)} pinned lanes>"

    def __iter__(self) -> Iterator[E]:
        """Yield the waiting requests, lane by lane, by priority, oldest first."""
        for lane in [self._any, *self._pinned.values()]:
            for priority in sorted(lane.levels, reverse=True):
                for places in lane.levels[priority].shares.values():
                    for node in places:
                        if node.entry is not None:
                            yield node.entry

    def push(self, entry: E, now: float, *, others: int = 0) -> None:
        """Add a request at the end of its level.

        Args:
            others: The number of requests that wait elsewhere and count too.

        Raises:
            QueueFull: The queue, or the client's share of it, is full; nothing is changed.
        """
        self._check_room(entry.client, others)
        self._put(_Node(entry, next(self._numbers), now), entry)

    def admit(self, entry: E, now: float, *, others: int = 0) -> None:
        """Reserve a place for a request that waits elsewhere, to which it can return with :meth:`push_front`.

        Raises:
            QueueFull: As for :meth:`push`.
        """
        self._check_room(entry.client, others)
        node = entry.queue_node = _Node(entry, next(self._numbers), now)
        node.entry = None

    def has_room(self, others: int = 0) -> bool:
        """Return whether one more may wait, beside this number of requests that wait elsewhere."""
        return self.live + others < self._limit

    def _check_room(self, client: Hashable | None, others: int) -> None:
        waiting = self.live + others
        if waiting >= self._limit:
            raise QueueFull(
                f"{waiting} requests wait already, as many as max_queue={self._limit} allows; a map takes its inputs as there is "
                "room",
                details={"limit": self._limit, "queued": waiting, "option": "max_queue"},
            )
        if client is None:
            return
        its, left = self._clients.get(client, 0), self._limit - waiting - 1
        if its >= left and self._limit > 1:
            raise QueueFull(
                f"{its} requests of this client wait already, and the {left + 1} places that are left of {self._limit} "
                "(max_queue) are for others, too",
                details={"limit": self._limit, "queued": waiting, "option": "max_queue", "client_queued": its},
            )

    def push_front(self, entry: E, now: float) -> None:
        """Return a request that was taken out and not done to its place, whatever the limit."""
        node = entry.queue_node
        arrival = node.arrival if isinstance(node, _Node) else now
        number = node.number if isinstance(node, _Node) else -1
        self._put(_Node(entry, number, arrival), entry)

    @property
    def unpinned(self) -> int:
        """Return the number of waiting requests that any worker may run."""
        return self._any.live

    def before(self, priority: int, pin: Any = None) -> int:
        """Return the number of requests for the same workers that go before a new request of this priority."""
        lanes = [self._any] if pin is None else [self._any, self._pinned.get(pin)]
        return sum(
            level.live
            for lane in lanes
            if lane is not None
            for other, level in lane.levels.items()
            if other >= priority
        )

    def oldest_arrival(self) -> float:
        """Return the arrival of the oldest request that any worker may run; infinity if there is none."""
        return min((level.oldest() for level in self._any.levels.values()), default=math.inf)

    def pop(self, now: float, worker: Any = None, accept: Callable[[E], bool] | None = None) -> E | None:
        """Take out the next request that this worker may run, or return None.

        Args:
            accept: If it returns False for the next request, nothing is taken out.
        """
        best: _Node[E] | None = None
        best_key = (math.inf, math.inf)
        for node, priority in self._fair_firsts(worker) if self._fair else self._firsts(worker):
            key = self._key(node, priority)
            if key < best_key:
                best, best_key = node, key
        if best is None:
            return None
        chosen = self._eldest(best, worker)
        entry = chosen.entry
        assert entry is not None
        if accept is not None and not accept(entry):
            return None
        if self._fair:
            best.level.turn(next(self._turns))
        self._take(chosen, entry)
        return entry

    def discard(self, entry: E) -> bool:
        """Remove a request, and return whether it was there."""
        node = entry.queue_node
        if not isinstance(node, _Node) or node.entry is not entry:
            return False
        self._take(node, entry)
        return True

    def pin(self, session: str, binding: Any, worker: Any) -> list[E]:
        """Let only this worker (None: any) run the waiting requests of a session with this binding. Their order is kept.

        Returns those requests, in their order.
        """
        pinned: list[E] = []
        nodes = [node for node in self._sessions.get(session, ()) if node.entry is not None]
        for node in nodes:
            entry = node.entry
            assert entry is not None
            if entry.binding is not binding:
                continue
            turn = node.level.turns[entry.fairness_key] if self._fair else None
            self._take(node, entry)
            entry.pin = worker
            self._put(_Node(entry, node.number, node.arrival), entry, turn)
            pinned.append(entry)
        return pinned

    def drop_pin(self, pin: Any) -> list[E]:
        """Remove and return all requests pinned to a worker, oldest first."""
        lane = self._pinned.get(pin)
        if lane is None:
            return []
        nodes = [
            node
            for level in lane.levels.values()
            for places in level.shares.values()
            for node in places
            if node.entry is not None
        ]
        nodes.sort(key=lambda node: node.number)
        entries = [node.entry for node in nodes if node.entry is not None]
        for entry in entries:
            self.discard(entry)
        return entries

    def refill(self, entries: Iterable[E]) -> None:
        """Replace the content by these entries, each in its previous place, if the content is uncertain."""
        self._any = _Lane()
        self._pinned.clear()
        self._sessions.clear()
        self._clients.clear()
        self.live = 0

        def number(entry: E) -> int:
            return entry.queue_node.number if isinstance(entry.queue_node, _Node) else -1

        for entry in sorted(entries, key=number):
            old = entry.queue_node
            arrival = old.arrival if isinstance(old, _Node) else -math.inf
            self._put(_Node(entry, number(entry), arrival), entry)

    # ---- inside ----------------------------------------------------------------------------------

    def _firsts(self, worker: Any) -> Iterator[tuple[_Node[E], int]]:
        """Yield the first of each level that this worker may run, with the level's priority."""
        for lane in (self._any, self._pinned.get(worker)):
            if lane is None or not lane.live:
                continue
            for priority, level in list(lane.levels.items()):
                node = level.first()
                if node is None:
                    del lane.levels[priority]
                else:
                    yield node, priority

    def _fair_firsts(self, worker: Any) -> Iterator[tuple[_Node[E], int]]:
        """Yield the entry whose turn it is for each priority, in whichever lane it waits."""
        chosen: dict[int, _Node[E]] = {}
        for node, priority in self._firsts(worker):
            known = chosen.get(priority)
            if known is None or node.level.next_turn() < known.level.next_turn():
                chosen[priority] = node
        return iter([(node, priority) for priority, node in chosen.items()])

    def _key(self, node: _Node[E], priority: int) -> tuple[float, float]:
        if self._aging is None:
            return -priority, node.number
        return node.arrival / self._aging - priority, node.number

    def _put(self, node: _Node[E], entry: E, turn: int | None = None) -> None:
        if entry.pin is None:
            lane = self._any
        else:
            found = self._pinned.get(entry.pin)
            if found is None:
                found = self._pinned[entry.pin] = _Lane()
            lane = found
        level = lane.levels.get(entry.priority)
        if level is None:
            level = lane.levels[entry.priority] = _Level()
        level.put(node, entry.fairness_key if self._fair else None, next(self._turns) if turn is None else turn)
        node.lane, node.level = lane, level
        entry.queue_node = node
        lane.live += 1
        self.live += 1
        if entry.client is not None:
            self._clients[entry.client] = self._clients.get(entry.client, 0) + 1
        if entry.session is not None:
            sisters = self._sessions.get(entry.session)
            if sisters is None:
                sisters = self._sessions[entry.session] = OrderedDict()
            last = next(reversed(sisters), None)
            sisters[node] = None
            if last is not None and last.number > node.number:
                for sister in [sister for sister in sisters if sister.number > node.number]:
                    sisters.move_to_end(sister)

    def _eldest(self, node: _Node[E], worker: Any) -> _Node[E]:
        assert node.entry is not None
        session = node.entry.session
        if session is None:
            return node
        first = next(iter(self._sessions[session]))
        assert first.entry is not None
        return first if first.entry.pin is None or first.entry.pin == worker else node

    def _take(self, node: _Node[E], entry: E) -> None:
        node.entry = None
        lane, level = node.lane, node.level
        level.drop()
        lane.live -= 1
        self.live -= 1
        client = entry.client
        if client is not None:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
        if not level.live:
            lane.levels.pop(entry.priority, None)
        if not lane.live and entry.pin is not None:
            self._pinned.pop(entry.pin, None)
        session = entry.session
        if session is not None:
            sisters = self._sessions[session]
            del sisters[node]
            if not sisters:
                del self._sessions[session]
