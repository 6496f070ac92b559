"""The policies of one pool around each of its calls, from the outside in: retry, limits, circuit, hedge."""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from snakepit_trio.errors import RequestTimeout, SnakepitError, WorkerStartupError
from snakepit_trio.tools.waits import Permit, current_chain

from .circuit import Circuit, State, Verdict
from .hedge import Allowance, hedged
from .limits import Admission, Limit
from .verdicts import judge, may_retry

if TYPE_CHECKING:
    import tenacity

    from snakepit_trio._timeouts import TimeLimit
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.observe.events import EventBus
    from snakepit_trio.tools.waits import Waits

__all__ = ["Guard"]

#: Runs the call once within this number of seconds (None: no limit), while it holds these permits. The list is shared by
#: simultaneous attempts of the same call and belongs to the code that runs them.
Attempt = Callable[[float | None, tuple[Permit, ...], list[Any] | None], Awaitable[Any]]
#: Wraps a wait outside the queue, until a deadline; the text names the awaited thing in errors. It raises the error that
#: ends the wait.
Pausing = Callable[[float, str], AbstractContextManager[object]]

_LIMIT, _ATTEMPT = "its limit", "its next attempt"


class Stream(Protocol):
    """A stream under the policies."""

    def verdict(self, *, gone: bool) -> BaseException | bool | None:
        """Return the call's outcome for the circuit breaker as its reader leaves: the failure, True for a success, None
        for neither.

        Args:
            gone: Whether the reader was cancelled.
        """


S = TypeVar("S", bound=Stream)


class Guard:
    """Applies a pool's policies to its calls. A pool without policies has none.

    Args:
        config: The pool's configuration.
        events: The event bus.
        waits: The nested waits of the runtime.
    """

    def __init__(self, config: PoolConfig, events: EventBus, waits: Waits) -> None:
        self._pool = config.name
        self._events = events
        self._retry = config.retry
        self._circuit = config.circuit
        self._hedge = config.hedge
        self._allowance = None if config.hedge is None else Allowance(config.hedge.max_share)
        limits = [Limit(limit, waits, self._limited) for limit in config.limits]
        self._limits = sorted(limits, key=lambda limit: limit.width)
        self._circuits: dict[str, Circuit] = {}

    def __repr__(self) -> str:
        return f"<Guard of {self._pool!r} circuits={list(self._circuits.values())}>"

    @classmethod
    def of(cls, config: PoolConfig, events: EventBus, waits: Waits) -> Guard | None:
        """Return a pool's guard, or None if the pool has no policies."""
        wanted = config.retry or config.circuit or config.hedge or config.limits
        return cls(config, events, waits) if wanted else None

    def circuits(self) -> Mapping[str, str]:
        """Return the state of each existing circuit by tool; ``"*"`` is the whole pool's."""
        return {name: circuit.state.value for name, circuit in self._circuits.items()}

    async def execute(
        self,
        attempt: Attempt,
        *,
        tool: str,
        timeout: float | None,
        limit: TimeLimit,
        idempotent: bool,
        session: str | None,
        pausing: Pausing,
    ) -> Any:
        """Make a call under the policies.

        Args:
            attempt: Makes one attempt.
            tool: The name of an existing tool.
            timeout: Seconds for the whole call; None: no limit.
            limit: The source of the timeout.
            idempotent: Whether the call may run more than once.
            session: The id of its session.
            pausing: Wraps its waits.

        Raises:
            CircuitOpen: The circuit of the tool is open.
            QuotaExceeded, QueueFull: A limit refuses the call.
            WouldDeadlock: The call would wait for a limit for ever.
            RequestTimeout: The time passed, in the call or before it.
            SnakepitError: The error of the last attempt, or the one that ended a wait.
        """
        deadline = math.inf if timeout is None else anyio.current_time() + timeout

        async def once() -> Any:
            with ExitStack() as stack:
                admission = stack.enter_context(await self._admit(tool, session, deadline, limit, pausing))
                stack.enter_context(self._circuit_permit(tool))
                admission.begin(anyio.current_time())
                if self._hedge is None or not self._may_hedge(tool, idempotent, session):
                    return await attempt(_left(deadline, tool, limit), admission.permits, None)
                both: list[Any] = []

                async def run(held: Admission) -> Any:
                    # Each attempt gives back its permits when it ends, because the other may wait for ever.
                    with held:
                        return await attempt(_left(deadline, tool, limit), held.permits, both)

                def beside() -> Callable[[], Awaitable[Any]] | None:
                    held = self._admit_hedge(tool)
                    return None if held is None else functools.partial(run, stack.enter_context(held))

                return await hedged(functools.partial(run, admission), self._hedge.delay, beside)

        if self._retry is None:
            return await once()
        retrying = self._retrying(tool, idempotent, deadline, pausing)
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
        make: Callable[..., AbstractAsyncContextManager[S]],
        *,
        tool: str,
        timeout: float | None,
        limit: TimeLimit,
        session: str | None,
        pausing: Pausing,
    ) -> AsyncIterator[S]:
        """Hold a stream under the limits and the circuit. An exception of its block does not count against the tool.

        Args:
            make: Opens the stream within ``timeout`` seconds, while it holds ``permits``.
            tool, timeout, limit, session, pausing: As in :meth:`execute`.

        Raises:
            CircuitOpen, QuotaExceeded, QueueFull, RequestTimeout, WouldDeadlock: As in :meth:`execute`.
        """
        deadline = math.inf if timeout is None else anyio.current_time() + timeout
        with await self._admit(tool, session, deadline, limit, pausing) as admission:
            circuit = self._circuit_of(tool)
            permit = None if circuit is None else circuit.acquire(anyio.current_time())
            verdict = Verdict.NONE
            try:
                admission.begin(anyio.current_time())
                opened = False
                try:
                    async with make(timeout=_left(deadline, tool, limit), permits=admission.permits) as chunks:
                        opened = True
                        try:
                            yield chunks
                        except BaseException as exc:
                            verdict = self._verdict(chunks.verdict(gone=not isinstance(exc, Exception)))
                            raise
                        else:
                            verdict = self._verdict(chunks.verdict(gone=False))
                except Exception as exc:
                    if not opened:
                        verdict = self._verdict(exc)
                    raise
            finally:
                if permit is not None:
                    permit.settle(verdict, anyio.current_time())

    # ---- inside ----------------------------------------------------------------------------------

    async def _admit(
        self, tool: str, session: str | None, deadline: float, limit: TimeLimit, pausing: Pausing
    ) -> Admission:
        """Wait until a call may begin; the caller must begin it in the same step."""
        circuit = self._circuit_of(tool)
        if circuit is not None:
            # Checked before any wait.
            circuit.check(anyio.current_time())
        outer = current_chain()

        def waiting() -> AbstractContextManager[object]:
            return pausing(deadline, _LIMIT)

        with ExitStack() as stack:
            admission = stack.enter_context(Admission())
            for each in self._limits:
                key = each.key(tool, session)
                if key is not None:
                    chain = (*outer, *admission.permits)
                    admission.passes.append(
                        await each.enter(key, tool, deadline, chain, waiting, limit=limit, nested=bool(outer))
                    )
            while delay := admission.delay(anyio.current_time()):
                with waiting():
                    await anyio.sleep(delay)
            # A call that has been cancelled by now takes nothing.
            await anyio.lowlevel.checkpoint_if_cancelled()
            _left(deadline, tool, limit)
            stack.pop_all()
        return admission

    def _admit_hedge(self, tool: str) -> Admission | None:
        """Admit a second call beside the first, if it may begin now. It then counts as begun."""
        assert self._allowance is not None
        if not self._allowance.there:
            return None
        with ExitStack() as stack:
            admission = stack.enter_context(Admission())
            for limit in self._limits:
                key = limit.key(tool, None)
                if key is not None:
                    found = limit.enter_nowait(key)
                    if found is None:
                        return None
                    admission.passes.append(found)
            self._allowance.spend()
            admission.begin(anyio.current_time())
            stack.pop_all()
        self._events.emit_frequent("policy.hedged", {}, {"pool": self._pool, "tool": tool})
        return admission

    def _circuit_permit(self, tool: str) -> AbstractContextManager[object]:
        circuit = self._circuit_of(tool)
        return nullcontext() if circuit is None else circuit.permit(anyio.current_time, self._judge)

    def _verdict(self, found: BaseException | bool | None) -> Verdict:
        if isinstance(found, BaseException):
            return Verdict.NONE if self._circuit is None else self._judge(found)
        return Verdict.SUCCESS if found else Verdict.NONE

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

    def _limited(self, tool: str, limit: str, refused: bool) -> None:
        fields = {"pool": self._pool, "tool": tool, "limit": limit, "refused": refused}
        self._events.emit_frequent("policy.limited", {}, fields)

    def _retrying(self, tool: str, idempotent: bool, deadline: float, pausing: Pausing) -> tenacity.AsyncRetrying:
        # Imported only here, because the import takes 30 ms.
        import tenacity

        config = self._retry
        assert config is not None

        def over(state: tenacity.RetryCallState) -> bool:
            return state.attempt_number >= config.attempts or anyio.current_time() + state.upcoming_sleep >= deadline

        def tell(state: tenacity.RetryCallState) -> None:
            assert state.outcome is not None
            error = state.outcome.exception()
            fields = {"pool": self._pool, "tool": tool, "error": getattr(error, "code", "")}
            self._events.emit_frequent(
                "policy.retried", {"attempt": state.attempt_number, "pause": state.upcoming_sleep}, fields
            )

        pause = tenacity.wait_exponential(config.delay, config.max_delay) + tenacity.wait_random(0, config.jitter)

        def wait(state: tenacity.RetryCallState) -> float:
            assert state.outcome is not None
            error = state.outcome.exception()
            # There is no worker before that time.
            least = error.details.get("retry_after", 0.0) if isinstance(error, WorkerStartupError) else 0.0
            return max(pause(state), least)

        async def sleep(seconds: float) -> None:
            with pausing(deadline, _ATTEMPT):
                await anyio.sleep(seconds)

        return tenacity.AsyncRetrying(
            sleep=sleep,
            stop=over,
            wait=wait,
            retry=tenacity.retry_if_exception(lambda error: may_retry(error, idempotent=idempotent, on=config.on)),
            before_sleep=tell,
            reraise=True,
        )


def _left(deadline: float, tool: str, limit: TimeLimit) -> float | None:
    """Return the seconds until the deadline; None for no deadline.

    Raises:
        RequestTimeout: The deadline has passed.
    """
    if deadline == math.inf:
        return None
    left = deadline - anyio.current_time()
    if left <= 0:
        raise RequestTimeout(
            f"{tool!r} had not begun when {limit} was spent",
            details={"phase": "queued", "tool": tool, "option": limit.option, "limit": limit.seconds},
        )
    return left
