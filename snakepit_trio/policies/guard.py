"""The policies of one pool, around each of its calls: retry, limits, circuit, hedge, from the outside in."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from snakepit_trio.errors import RequestTimeout, SnakepitError, WorkerStartupError
from snakepit_trio.tools.waits import Permit, current_chain

from .circuit import Circuit, State, Verdict
from .hedge import Allowance, hedged
from .limits import Limit
from .verdicts import judge, may_retry

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import tenacity

    from snakepit_trio.config import PoolConfig
    from snakepit_trio.observe.events import EventBus
    from snakepit_trio.tools.waits import Waits

__all__ = ["Guard"]

T = TypeVar("T")

#: Runs the call once, within so many seconds (None: without a limit), while it holds these permits.
Attempt = Callable[[float | None, tuple[Permit, ...]], Awaitable[Any]]


class Guard:
    """What a pool does about its calls beside making them. There is none for a pool without policies.

    Args:
        config: The pool's.
        events: Where it tells what it does.
        waits: All that wait for each other in the runtime.
    """

    def __init__(self, config: PoolConfig, events: EventBus, waits: Waits) -> None:
        self._pool = config.name
        self._events = events
        self._retry = config.retry
        self._circuit = config.circuit
        self._hedge = config.hedge
        self._allowance = None if config.hedge is None else Allowance(config.hedge.max_share)
        self._limits = [Limit(limit, waits, self._limited) for limit in config.limits]
        self._circuits: dict[str, Circuit] = {}

    def __repr__(self) -> str:
        return f"<Guard of {self._pool!r} circuits={list(self._circuits.values())}>"

    @classmethod
    def of(cls, config: PoolConfig, events: EventBus, waits: Waits) -> Guard | None:
        """The guard of a pool, None when it has no policies."""
        wanted = config.retry or config.circuit or config.hedge or config.limits
        return cls(config, events, waits) if wanted else None

    def circuits(self) -> Mapping[str, str]:
        """The state of each circuit that there is, by tool; ``"*"`` is the whole pool's."""
        return {name: circuit.state.value for name, circuit in self._circuits.items()}

    async def execute(
        self, attempt: Attempt, *, tool: str, timeout: float | None, idempotent: bool, session: str | None
    ) -> Any:
        """Make a call under the policies.

        Args:
            attempt: Makes it once.
            tool: A tool that the pool has.
            timeout: Seconds for all of it; None: no limit.
            idempotent: It may run more than once.
            session: The id of its session.

        Raises:
            CircuitOpen: The tool has failed so often that it is not called.
            QuotaExceeded, QueueFull: A limit refuses it.
            WouldDeadlock: It would wait for its limit for ever.
            RequestTimeout: The time was spent, in the call or before it.
            SnakepitError: What the last attempt raised.
        """
        deadline = math.inf if timeout is None else anyio.current_time() + timeout

        async def once() -> Any:
            async with self._admitted(tool, session, deadline) as permits:
                if self._hedge is not None and self._may_hedge(tool, idempotent, session):
                    # One of the two may wait for ever, and the other give the permits back: neither holds them alone.
                    return await hedged(
                        lambda: attempt(_left(deadline, tool), ()), self._hedge.delay, lambda: self._spend(tool)
                    )
                return await attempt(_left(deadline, tool), permits)

        if self._retry is None:
            return await once()
        retrying = self._retrying(tool, idempotent, deadline)
        try:
            return await retrying(once)
        except SnakepitError as exc:
            attempts = retrying.statistics.get("attempt_number", 1)
            if attempts > 1:
                exc.details["attempts"] = attempts
            raise

    @asynccontextmanager
    async def stream(
        self,
        make: Callable[..., AbstractAsyncContextManager[T]],
        *,
        tool: str,
        timeout: float | None,
        session: str | None,
    ) -> AsyncIterator[T]:
        """Hold a stream under the limits and the circuit.

        Args:
            make: Opens it, within ``timeout`` seconds, while it holds ``permits``.
            tool, timeout, session: As in :meth:`execute`.

        Raises:
            CircuitOpen, QuotaExceeded, QueueFull, RequestTimeout, WouldDeadlock: As in :meth:`execute`.
        """
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        async with self._admitted(tool, session, deadline) as permits:
            async with make(timeout=_left(deadline, tool), permits=permits) as chunks:
                yield chunks

    # ---- inside ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _admitted(self, tool: str, session: str | None, deadline: float) -> AsyncIterator[tuple[Permit, ...]]:
        circuit = self._circuit_of(tool)
        if circuit is not None:
            # Before it waits for anything.
            circuit.check(anyio.current_time())
        async with AsyncExitStack() as stack:
            held: tuple[Permit, ...] = ()
            for limit in self._limits:
                key = limit.key(tool, session)
                if key is not None:
                    chain = (*current_chain(), *held)
                    got = await stack.enter_async_context(limit.inside(key, tool, deadline, chain))
                    held = held if got is None else (*held, got)
            permit: AbstractContextManager[object] = nullcontext()
            if circuit is not None:
                permit = circuit.permit(anyio.current_time, self._judge)
            with permit:
                yield held

    def _circuit_of(self, tool: str) -> Circuit | None:
        config = self._circuit
        if config is None:
            return None
        name = "*" if config.per == "pool" else tool
        circuit = self._circuits.get(name)
        if circuit is None:
            shown = f"pool {self._pool!r}" if name == "*" else f"{tool!r} in pool {self._pool!r}"

            def told(state: State, failures: int, calls: int) -> None:
                counts = {"failures": failures, "calls": calls} if state is State.OPEN else {}
                event = "opened" if state is State.OPEN else state.value
                self._events.emit(f"circuit.{event}", counts, pool=self._pool, tool=name)

            circuit = self._circuits[name] = Circuit(config, shown, told)
        return circuit

    def _judge(self, error: BaseException) -> Verdict:
        assert self._circuit is not None
        return judge(error, self._circuit.ignore)

    def _may_hedge(self, tool: str, idempotent: bool, session: str | None) -> bool:
        assert self._hedge is not None and self._allowance is not None
        if not idempotent or session is not None or (self._hedge.tools and tool not in self._hedge.tools):
            return False
        self._allowance.earn()
        return True

    def _spend(self, tool: str) -> bool:
        assert self._allowance is not None
        if not self._allowance.spend():
            return False
        self._events.publish("policy.hedged", {}, {"pool": self._pool, "tool": tool})
        return True

    def _limited(self, tool: str, limit: str, refused: bool) -> None:
        fields = {"pool": self._pool, "tool": tool, "limit": limit, "refused": refused}
        self._events.publish("policy.limited", {}, fields)

    def _retrying(self, tool: str, idempotent: bool, deadline: float) -> tenacity.AsyncRetrying:
        # Imported only where it is used: it takes 30 ms.
        import tenacity

        config = self._retry
        assert config is not None

        def over(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= config.attempts or anyio.current_time() + state.upcoming_sleep >= deadline

        def tell(state: tenacity.RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            fields = {"pool": self._pool, "tool": tool, "error": getattr(error, "code", "")}
            self._events.publish(
                "policy.retried", {"attempt": state.attempt_number, "pause": state.upcoming_sleep}, fields
            )

        pause = tenacity.wait_exponential(config.delay, config.max_delay) + tenacity.wait_random(0, config.jitter)

        def wait(state: tenacity.RetryCallState) -> float:
            assert state.outcome is not None
            error = state.outcome.exception()
            # Before that there is no worker.
            least = error.details.get("retry_after", 0.0) if isinstance(error, WorkerStartupError) else 0.0
            return max(pause(state), least)

        return tenacity.AsyncRetrying(
            sleep=anyio.sleep,
            stop=over,
            wait=wait,
            retry=tenacity.retry_if_exception(lambda error: may_retry(error, idempotent=idempotent, on=config.on)),
            before_sleep=tell,
            reraise=True,
        )


def _left(deadline: float, tool: str) -> float | None:
    """Seconds until the deadline, None when there is none.

    Raises:
        RequestTimeout: It has come.
    """
    if deadline == math.inf:
        return None
    left = deadline - anyio.current_time()
    if left <= 0:
        raise RequestTimeout(
            f"{tool!r} had not begun when its time was spent", details={"phase": "queued", "tool": tool}
        )
    return left
