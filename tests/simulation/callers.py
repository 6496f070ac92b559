"""The tasks that use the pool in a simulation, and which ends of a call what was injected can explain."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np

import snakepit_trio as sp
from tests.injection.tracing import Injected, depth_of

from .scenario import START_FAULTS, Caller

if TYPE_CHECKING:
    from .simulator import Simulation

__all__ = ["Boom", "call", "explained", "same"]


class Boom(Exception):
    """What a caller's own code raises."""


#: Faults that can cost a worker that is up.
_DEADLY = {"crash_before", "crash_after", "cut", "torn", "garbage", "twice", "stray", "mute", "stall", "leave"}
#: Seconds. How much later than due a caller may be: deadlines are kept in ticks of a millisecond.
_LATE = 0.001 + 1e-6
#: The same when an exception was raised in the host: what keeps deadlines may have to begin again.
_MENDED = 0.5


async def call(simulation: Simulation, caller: Caller) -> None:
    """Do what one caller does, and note how it ended."""
    await anyio.sleep(caller.at)
    pool = simulation.pools[caller.pool]
    begun = anyio.current_time()
    simulation.note(f"caller {caller.number} ({caller.kind} {caller.tool}) begins")
    outcome = "cancelled"
    details: dict[str, Any] = {}
    with anyio.move_on_after(caller.patience):
        try:
            await _KINDS[caller.kind](simulation, pool, caller)
            outcome = "completed"
        except Boom:
            outcome = "Boom"
        except sp.SnakepitError as exc:
            outcome, details = type(exc).__name__, {"code": exc.code, **exc.details}
        except Injected as exc:
            # Only the function that was called itself can't turn it into another.
            assert simulation.injection is not None
            outcome = "itself" if depth_of(exc) == 1 or simulation.injection.called else "raw"
    spent = anyio.current_time() - begun
    simulation.ended(caller, outcome)
    if caller.kind == "nested" and {*caller.path} != {caller.pool}:
        simulation.outcomes[f"across pools:{outcome}"] += 1
    if outcome == "PoolClosed" and not simulation.closing:
        simulation.outcomes["one of several:PoolClosed"] += 1
    assert explained(simulation, caller, outcome, details, spent), f"nothing explains {outcome} of {caller} {details}"
    late = _LATE if simulation.injection is None or not simulation.injection.raised else _MENDED
    limit = caller.patience if caller.timeout is None else min(caller.patience, caller.timeout)
    if caller.kind in ("execute", "nested"):
        assert spent <= limit + late, f"{caller} took {spent:.6f} s, and had {limit}"
    elif caller.kind == "session" or caller.kind == "map":
        assert spent <= caller.patience + late, f"{caller} left {spent - caller.patience:.6f} s late"


def explained(simulation: Simulation, caller: Caller, outcome: str, details: dict[str, Any], spent: float) -> bool:
    """Whether a call may end so, by what has been injected and asked for up to now."""
    met = {caller.pool, *(caller.path if caller.kind == "nested" else ())}
    if outcome == "PoolClosed":
        return simulation.closing or not simulation.closed.isdisjoint(met)
    configs = [simulation.configs[number] for number in met]
    return any(_explained(simulation, options, caller, outcome, details, spent) for options in configs)


def _explained(
    simulation: Simulation, options: sp.PoolConfig, caller: Caller, outcome: str, details: dict[str, Any], spent: float
) -> bool:
    happened = set(simulation.world.happened)
    kinds = {c.kind for c in simulation.scenario.callers}
    raised = simulation.injection is not None and simulation.injection.raised
    kills = simulation.can_lose_workers or bool(happened & _DEADLY) or raised
    match outcome:
        case "completed":
            return True
        case "cancelled":
            return spent >= caller.patience - _LATE
        case "RequestTimeout":
            if caller.timeout is None:
                return False
            # A limit says so as soon as it is known that there will be no token in time.
            early = any(limit.rate is not None for limit in options.limits)
            return caller.kind != "execute" or early or spent >= caller.timeout - _LATE
        case "QueueTimeout":
            waited = options.queue_timeout is not None and spent >= options.queue_timeout - _LATE
            return waited or (options.reject_hopeless and bool(details.get("hopeless")))
        case "QueueFull":
            waiting = [limit.max_waiting for limit in options.limits]
            return min([*waiting, 1000 if options.max_queue is None else options.max_queue]) < 1000
        case "QuotaExceeded":
            return not all(limit.wait for limit in options.limits)
        case "CircuitOpen":
            return options.circuit is not None
        case "Boom":
            return caller.raises is not None
        case "WorkerCrashed":
            # A worker that is at work is not dead, however long it answers nothing.
            found_dead = details.get("reason") == "heartbeat"
            return kills and caller.kind != "operate" and ("mute" in happened or not found_dead)
        case "WorkerStartupError":
            if raised or (caller.kind == "operate" and simulation.can_lose_workers):
                return True
            # A worker that a call has ended is no sign that none can start.
            return bool(happened & {*START_FAULTS, *_DEADLY}) and "retry_after" in details
        case "WorkerBusy":
            return caller.kind == "session" and caller.affinity == "strict_fail_fast"
        case "SessionWorkerUnavailable":
            # The strictest of the blocks that have a session open counts for all.
            sisters = [
                c for c in simulation.scenario.callers if c.kind == "session" and _session_of(c) == _session_of(caller)
            ]
            return caller.kind == "session" and any(c.affinity != "hint" for c in sisters)
        case "WouldDeadlock":
            # Of others only those that hold a permit which a nested call may wait for, while that one has the seat.
            held = simulation.closing or simulation.closed or any(limit.concurrency for limit in options.limits)
            return caller.kind == "nested" or (bool(held) and "nested" in kinds)
        case "InvalidParameter":
            return caller.kind == "operate" or caller.more == "surrogate"
        case "RequestCancelled":
            return caller.kind in ("nested", "session")
        case "SessionNotFound":
            return caller.kind == "session" and any(c.ttl is not None or c.ends for c in simulation.scenario.callers)
        case "SnakepitError":
            return raised and details["code"] == "internal"
        case "itself":
            return raised
        case "ToolError":
            # Of a host tool that could not be called, or whose answer could not be given.
            return bool(caller.params.get("fails")) or (raised and caller.kind == "nested")
    return False


def same(found: Any, sent: dict[str, Any]) -> bool:
    """Whether an answer has what was sent, exactly."""
    if not isinstance(sent.get("data"), np.ndarray):
        return bool(found == sent)
    return found.keys() == sent.keys() and all(np.array_equal(found[key], value) for key, value in sent.items())


async def _execute(simulation: Simulation, pool: sp.Pool, caller: Caller) -> None:
    found = await pool.execute(caller.tool, caller.sent, timeout=caller.timeout, priority=caller.priority)
    assert same(found, caller.sent), f"{caller} got the answer of another: {found}"
    if simulation.scenario.close_at is not None and caller.more == "array":
        simulation.kept.append((found, caller.sent))


async def _nested(simulation: Simulation, pool: sp.Pool, caller: Caller) -> None:
    params = {**caller.sent, "tool": caller.tool, "path": list(caller.path)}
    found = await pool.execute("nested", params, timeout=caller.timeout, priority=caller.priority)
    assert same(found, caller.sent), f"{caller} got the answer of another: {found}"


async def _stream(simulation: Simulation, pool: sp.Pool, caller: Caller) -> None:
    params = {**caller.sent, "n": caller.count}
    async with pool.stream("stream", params, timeout=caller.timeout, priority=caller.priority) as chunks:
        taken = 0
        async for chunk in chunks:
            assert chunk == taken, f"{caller}: chunk {chunk} in the place of {taken}"
            if taken == caller.raises:
                raise Boom
            if taken == caller.leave_at:
                return
            taken += 1
            if caller.pause:
                await anyio.sleep(caller.pause)
        assert taken == caller.count, f"{caller}: the stream ended after {taken}"


async def _map(simulation: Simulation, pool: sp.Pool, caller: Caller) -> None:
    inputs = [{**caller.sent, "i": i} for i in range(caller.count)]

    def given() -> Iterator[dict[str, Any]]:
        for number, one in enumerate(inputs):
            if number == caller.raises:
                raise Boom
            yield one

    async def slowly() -> AsyncIterator[dict[str, Any]]:
        for one in given() if caller.inputs == "raising" else inputs:
            await anyio.sleep(caller.pause)
            yield one

    source: Any = (
        slowly() if caller.pause or caller.inputs == "slow" else given() if caller.inputs == "raising" else inputs
    )
    options: dict[str, Any] = {"limit": caller.limit, "ordered": caller.ordered, "return_errors": caller.errors}
    async with pool.map(caller.tool, source, timeout=caller.timeout, priority=caller.priority, **options) as results:
        taken: set[int] = set()
        async for found in results:
            assert results.index not in taken, f"{caller}: two results of input {results.index}"
            assert not caller.ordered or results.index == len(taken), f"{caller}: {results.index} after {taken}"
            taken.add(results.index)
            if isinstance(found, sp.SnakepitError):
                details = {"code": found.code, **found.details}
                assert caller.errors and explained(simulation, caller, type(found).__name__, details, math.inf), repr(
                    found
                )
                simulation.outcomes[f"map input:{type(found).__name__}"] += 1
            else:
                assert same(found, inputs[results.index]), f"{caller}: {found} in the place of {inputs[results.index]}"
            if len(taken) - 1 == caller.raises and caller.inputs != "raising":
                raise Boom
            if len(taken) - 1 == caller.leave_at:
                return
        assert len(taken) == caller.count, f"{caller}: {len(taken)} results"


def _session_of(caller: Caller) -> str:
    return f"s{caller.number % 4}"


async def _session(simulation: Simulation, pool: sp.Pool, caller: Caller) -> None:
    name = _session_of(caller)
    options: dict[str, Any] = {"affinity": caller.affinity, "on_lost": caller.on_lost, "ttl": caller.ttl}
    async with pool.session(name, **options) as session:
        sent = caller.sent
        for i in range(caller.count):
            params = {**sent, "i": i}
            found = await session.execute(caller.tool, params, timeout=caller.timeout)
            assert same(found, params), f"{caller} got the answer of another: {found}"
            if caller.more == "array":
                # What has come from a worker goes to one, perhaps the same, as it is.
                sent = {**sent, "data": found["data"]}
            await session.put("k", i)
            if i == caller.raises:
                raise Boom
            if caller.ends:
                await simulation.runtime.sessions.close(name)


async def _operate(simulation: Simulation, pool: sp.Pool, caller: Caller) -> None:
    workers = [info.id for info in pool.workers() if info.state in ("ready", "busy")]
    chosen = workers[caller.number % len(workers)] if workers else "none"
    cordoned = simulation.invariants[caller.pool].cordoned
    match caller.tool:
        case "resize":
            await pool.resize(1 + caller.number % 5)
        case "recycle":
            await pool.recycle(chosen)
        case "rolling_restart":
            await pool.rolling_restart()
        case "cordon":
            cordoned.add(chosen)
            pool.cordon(chosen)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05)
            pool.cordon(chosen, cordoned=False)
            cordoned.discard(chosen)
        case "drain":
            cordoned.add(chosen)
            try:
                with anyio.move_on_after(0.3):
                    await pool.drain(chosen)
            finally:
                pool.cordon(chosen, cordoned=False)
                cordoned.discard(chosen)
        case "close":
            simulation.closed.add(caller.pool)
            await pool.aclose(drain=True)
        case "kill":
            pool.kill_worker(chosen)


_KINDS = {
    "execute": _execute,
    "nested": _nested,
    "stream": _stream,
    "map": _map,
    "session": _session,
    "operate": _operate,
}
