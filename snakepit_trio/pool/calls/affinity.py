"""The bindings of a session's calls to workers: which binding a call uses, and when a new one is made.

A session has one binding in each pool, shared by all blocks that have it open. It is as strict as the strictest of
them. After the loss of its worker, the ``on_lost`` of a block decides whether the block's next call makes a new
binding. A new binding of one block does not change what another block's own ``on_lost`` allows for its calls.
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

#: From the least to the most strict.
AFFINITIES = ("hint", "strict_queue", "strict_fail_fast")
#: The bindings that this task, or a task from which it was started, is rebuilding, each with the rebuilding task.
_REBUILDING: ContextVar[tuple[tuple[Binding, int], ...]] = ContextVar("snakepit_rebuilding", default=())


class _Affinities:
    """The affinities with which a session is open in one pool.

    Args:
        kept: The affinities of blocks that have left it open.
    """

    def __init__(self, kept: str = "hint") -> None:
        self.kept = kept
        self.blocks: list[str] = []

    @property
    def strictest(self) -> str:
        return max((self.kept, *self.blocks), key=AFFINITIES.index)


def affinity_in(pool: Pool, known: KnownSession) -> str:
    """Return a session's affinity in a pool; if no block has opened it there, the pool's own from now on."""
    found: _Affinities = known.affinities.setdefault(pool.name, _Affinities(pool.config.affinity))
    return found.strictest


class Ties:
    """The bindings of one block's calls.

    Args:
        session: The block's session.
        known: This process's state of the session.
        on_lost: The block's choice after the loss of a strict session's worker.

    Attributes:
        raised: The last exception of an ``on_lost`` function.
    """

    def __init__(self, session: Session, known: KnownSession, on_lost: OnLost) -> None:
        self.raised: BaseException | None = None
        self._session = session
        self._known = known
        self._on_lost = on_lost
        self._pool: str = session.pool.name
        self._joined = False
        # The binding of the last call.
        self._relied_on: Binding | None = None

    def __repr__(self) -> str:
        return f"<Ties of {self._session.id!r} in pool {self._pool!r}>"

    @property
    def seats(self) -> Seats | None:
        """Return the seats of the worker to which the session is bound, if it exists and the block's calls may use it."""
        binding: Binding | None = self._known.bindings.get(self._pool)
        if binding is None or binding.seats is None or binding.seats.over or self._has_lost(binding):
            return None
        return binding.seats

    def join(self) -> None:
        """Record that the block has the session open."""
        self._affinities.blocks.append(self._session.affinity)
        self._joined = True
        self._tie_anew()

    def leave(self, *, detach: bool) -> None:
        """Record that the block has ended. With ``detach`` its affinity remains, for blocks that resume the session."""
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
        """Make the binding as strict as the strictest block, with the worker that it has now."""
        binding: Binding | None = self._known.bindings.get(self._pool)
        strict = self._affinities.strictest != "hint"
        if binding is None or binding.strict is strict:
            return
        if strict:
            # A new binding object, so that waiting calls that may run anywhere are not moved.
            seats = binding.seats
            made = Binding(self._session.id, strict=True, seats=None if seats is None or seats.over else seats)
            self._known.bindings[self._pool] = made
        else:
            self._session.pool.calls.untie(self._known.id, binding)

    def _new(self, *, whole: bool) -> Binding:
        strict = self._affinities.strictest != "hint"
        made = self._known.bindings[self._pool] = Binding(self._session.id, strict=strict, whole=whole)
        return made

    def _has_lost(self, binding: Binding) -> bool:
        """Return whether another block has made this binding after this block's worker was lost."""
        if not binding.strict or self._on_lost != "error":
            return False
        relied_on = self._relied_on
        return relied_on is not None and relied_on is not binding and relied_on.lost

    def tie(self) -> Binding | None:
        """Return the binding of the next call, or None while it has to be, or is being, rebuilt."""
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
        """Return the binding once the lost state has been rebuilt, by this call or by another.

        Raises:
            SessionNotFound: The session has been closed, or has expired.
            SessionWorkerUnavailable: The new worker was lost during the rebuilding.
            Exception: An exception of ``on_lost``; see :attr:`raised`.
        """
        while (binding := self.tie()) is None:
            rebuilt = self._known.bindings[self._pool].rebuilt
            if rebuilt is not None:
                # One after the other, in the order of their calls.
                async with rebuilt:
                    pass
            else:
                assert callable(self._on_lost)
                await self._rebuild(self._on_lost)
            self._session.check_open()
        return binding

    async def _rebuild(self, on_lost: Callable[[Session], object]) -> None:
        """Bind to another worker and rebuild the state there, or in the worker that another block has bound without
        rebuilding.

        The session's other calls wait. If this fails, the next of them tries again.
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
    """Return whether this task works on rebuilding a binding, directly or through a worker."""
    if any(found is binding and is_under(task) for found, task in _REBUILDING.get()):
        return True
    return any(getattr(link, "binding", None) is binding for link in current_chain())
