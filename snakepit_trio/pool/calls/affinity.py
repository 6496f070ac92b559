"""How the calls of one block of a session are tied to workers: which tie they go by, and when it is made anew.

A session has one tie in each pool, whichever blocks have it open. It is as strict as the strictest of them wants. When its worker
is lost, the next call of a block makes a new one, or doesn't, as the block's ``on_lost`` says; what one block has begun anew
with changes nothing for the calls of another that its own ``on_lost`` does not allow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio

from snakepit_trio._tasks import is_under
from snakepit_trio.errors import SessionWorkerUnavailable
from snakepit_trio.tools.waits import current_chain

from ..scheduling.request import Binding

if TYPE_CHECKING:
    from snakepit_trio.sessions.directory import KnownSession

    from ..pool import Pool
    from ..scheduling.request import Seats
    from .session import OnLost, Session

__all__ = ["AFFINITIES", "Ties", "affinity_in"]

#: The strictest last.
AFFINITIES = ("hint", "strict_queue", "strict_fail_fast")
#: The ties that this task, or one that it comes from, is rebuilding, each with the task that does it.
_REBUILDING: ContextVar[tuple[tuple[Binding, int], ...]] = ContextVar("snakepit_rebuilding", default=())


class _Affinities:
    """With which affinities a session is open in one pool.

    Args:
        kept: Of those that have left it open.
    """

    def __init__(self, kept: str = "hint") -> None:
        self.kept = kept
        self.blocks: list[str] = []

    @property
    def strictest(self) -> str:
        return max((self.kept, *self.blocks), key=AFFINITIES.index)


def affinity_in(pool: Pool, known: KnownSession) -> str:
    """The affinity that a session has in a pool; the pool's own from now on if no block has opened it there."""
    found: _Affinities = known.affinities.setdefault(pool.name, _Affinities(pool.config.affinity))
    return found.strictest


class Ties:
    """The ties of one block's calls.

    Args:
        session: The block's session.
        known: What this process has of it.
        on_lost: What becomes of the block's calls when the session is strict and its worker is lost.

    Attributes:
        raised: What ``on_lost``, a function, has raised last.
    """

    def __init__(self, session: Session, known: KnownSession, on_lost: OnLost) -> None:
        self.raised: BaseException | None = None
        self._session = session
        self._known = known
        self._on_lost = on_lost
        self._pool: str = session.pool.name
        self._joined = False
        # The tie that the last call went by.
        self._relied_on: Binding | None = None

    def __repr__(self) -> str:
        return f"<Ties of {self._session.id!r} in pool {self._pool!r}>"

    @property
    def seats(self) -> Seats | None:
        """The incarnation that the session is tied to, while it is there and the block's calls may go to it."""
        binding: Binding | None = self._known.bindings.get(self._pool)
        if binding is None or binding.seats is None or binding.seats.over or self._has_lost(binding):
            return None
        return binding.seats

    def join(self) -> None:
        """The block has the session open from now on."""
        self._affinities.blocks.append(self._session.affinity)
        self._joined = True
        self._tie_anew()

    def leave(self, *, detach: bool) -> None:
        """The block ends. With ``detach`` its affinity stays, for whoever resumes the session."""
        if self._joined:
            self._joined = False
            affinities, own = self._affinities, self._session.affinity
            affinities.blocks.remove(own)
            self._joined = False
            if detach:
                affinities.kept = max(affinities.kept, own, key=AFFINITIES.index)
            self._tie_anew()

    @property
    def _affinities(self) -> _Affinities:
        found: _Affinities = self._known.affinities.setdefault(self._pool, _Affinities())
        return found

    def _tie_anew(self) -> None:
        """The session is tied as strictly as the strictest of its blocks wants, from where it is tied now."""
        binding: Binding | None = self._known.bindings.get(self._pool)
        strict = self._affinities.strictest != "hint"
        if binding is None or binding.strict is strict:
            return
        if strict:
            # Another, so that what waits already, and may run anywhere, moves nothing.
            seats = binding.seats
            made = Binding(self._session.id, strict=True, seats=None if seats is None or seats.over else seats)
            self._known.bindings[self._pool] = made
        else:
            self._session.pool._scheduler.untie(self._known.id, binding, anyio.current_time())

    def _new(self, *, whole: bool) -> Binding:
        strict = self._affinities.strictest != "hint"
        made = self._known.bindings[self._pool] = Binding(self._session.id, strict=strict, whole=whole)
        return made

    def _has_lost(self, binding: Binding) -> bool:
        """Whether another block has begun anew, by this tie, after the worker was lost that this block's calls went to."""
        if not binding.strict or self._on_lost != "error":
            return False
        relied_on = self._relied_on
        return relied_on is not None and relied_on is not binding and relied_on.lost

    def tie(self) -> Binding | None:
        """The tie of the next call; None while it has to be rebuilt, or is."""
        binding: Binding | None = self._known.bindings.get(self._pool)
        if binding is None:
            binding = self._new(whole=True)
        if binding.rebuilt is not None and _rebuilds(binding):
            return binding
        if self._has_lost(binding):
            return self._relied_on
        if binding.rebuilt is not None or (callable(self._on_lost) and (binding.lost or not binding.whole)):
            return None
        if binding.lost and self._on_lost == "rebind":
            binding = self._new(whole=False)
        self._relied_on = binding
        return binding

    async def rebuilt(self) -> Binding:
        """The same, when there is one: what the lost worker held is rebuilt here, or has been by another call.

        Raises:
            SessionNotFound: The session was closed meanwhile, or has expired.
            SessionWorkerUnavailable: The worker was lost in which it was rebuilt.
            Exception: What ``on_lost`` raises; see :attr:`raised`.
        """
        while (binding := self.tie()) is None:
            rebuilt = self._known.bindings[self._pool].rebuilt
            if rebuilt is not None:
                # One after the other, in the order in which they came.
                async with rebuilt:
                    pass
            else:
                assert callable(self._on_lost)
                await self._rebuild(self._on_lost)
            self._session.check_open()
        return binding

    async def _rebuild(self, on_lost: Callable[[Session], object]) -> None:
        """Begin anew with another worker, or in the one with which another block has begun anew without this.

        The session's other calls wait; when it fails, the next of them tries again.
        """
        bindings, name = self._known.bindings, self._pool
        before: Binding = bindings[name]
        made = self._new(whole=False) if before.lost else before
        lock = made.rebuilt = anyio.Lock()
        lock.acquire_nowait()
        token = _REBUILDING.set((*_REBUILDING.get(), (made, anyio.get_current_task().id)))
        try:
            rebuilding = on_lost(self._session)
            if inspect.isawaitable(rebuilding):
                await rebuilding
            if made.lost:
                id = self._session.id
                raise SessionWorkerUnavailable(
                    f"the worker of session {id!r} died while it was rebuilt", details={"session": id}
                )
            made.whole = True
        except BaseException as exc:
            self.raised = exc
            if bindings.get(name) is made:
                bindings[name] = before
            raise
        finally:
            _REBUILDING.reset(token)
            made.rebuilt = None
            lock.release()


def _rebuilds(binding: Binding) -> bool:
    """Whether this task works on the rebuilding of a tie, here or by way of a worker."""
    if any(found is binding and is_under(task) for found, task in _REBUILDING.get()):
        return True
    return any(getattr(link, "binding", None) is binding for link in current_chain())
