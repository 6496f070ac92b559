"""What happens in one simulation, all of it as plain values drawn from one seed: options, callers, faults.

A part of a scenario is left out by its number, and the rest of it stays what it was: that makes a failure small.
"""

from __future__ import annotations

import random
from typing import Any

import attrs
import numpy as np

import snakepit_trio as sp

__all__ = [
    "FRAME_FAULTS",
    "HOST_FRAMES",
    "MORE",
    "START_FAULTS",
    "WORKER_FRAMES",
    "Caller",
    "Fault",
    "Scenario",
    "draw",
]

#: What happens at one frame of a worker, its host's or its own; beside that, "leave".
FRAME_FAULTS = ("crash_before", "crash_after", "cut", "torn", "garbage", "twice", "stray", "mute", "stall")
#: The kinds of frames that a host sends, but for Stop, after which nothing happens; and those of workers, but for a tool's events.
HOST_FRAMES = ("Call", "Cancel", "Credit", "Ping", "HostReply")
WORKER_FRAMES = ("Reply", "Chunk", "Pong", "HostCall", "HostCancel", "Leaving")
#: What happens when a worker starts.
START_FAULTS = ("launch_fails", "start_fails", "start_dies", "start_hangs", "start_slow", "connect_fails", "odd")

#: What users send, by name; the first can't be sent.
MORE: dict[str, dict[str, Any]] = {
    "surrogate": {"text": "\ud800"},
    "text": {"text": ["", "\0", "e\u0301", "\u00e9", "E\u0301"], "huge": 10**400},
    "long": {"text": "x" * 70_000},
    "data": {"data": b"\0x" * 40_000},
    "large": {"data": bytes(300_000)},
    "array": {"data": np.arange(40_000.0)},
    "megabytes": {"data": bytearray(2_000_000)},
}

_MORE = ("surrogate", "text", "long", "data", "megabytes")
_OPERATIONS = ("resize", "recycle", "rolling_restart", "cordon", "drain", "kill")


@attrs.frozen(kw_only=True)
class Fault:
    """One fault: of the ``worker``-th start of the simulation, at its ``frame``-th frame, or the next one of the kind ``at``."""

    number: int
    kind: str
    worker: int
    frame: int = 0
    at: str = ""


@attrs.frozen(kw_only=True)
class Caller:
    """One task that uses the pool: what it does, when it begins, and all that it has drawn beforehand.

    Attributes:
        raises: Its block, or what gives a map its inputs, raises at this item.
        inputs: How a map gets its inputs: ``"list"``, ``"slow"`` or ``"raising"``.
        limit, ordered, errors: A map's options; ``errors`` is ``return_errors``.
        pool: The number of the pool that it uses.
        path: Of a nested call: the pools that it goes through from there, each by a tool of the one before; the last runs the tool.
        more: What it sends beside its parameters; the name of one of :data:`MORE`.
        ttl, ends: Of a session: how long it lives unused, and whether the caller ends it for everybody.
    """

    number: int
    kind: str
    at: float
    tool: str = "work"
    params: dict[str, Any] = attrs.field(factory=dict)
    timeout: float | None = None
    patience: float = float("inf")
    priority: int = 0
    count: int = 1
    leave_at: int | None = None
    pause: float = 0.0
    affinity: str = "hint"
    on_lost: str = "error"
    raises: int | None = None
    inputs: str = "list"
    limit: int | None = 3
    ordered: bool = True
    errors: bool = False
    ttl: float | None = None
    ends: bool = False
    more: str = ""
    pool: int = 0
    path: tuple[int, ...] = (0,)

    @property
    def sent(self) -> dict[str, Any]:
        """The arguments."""
        return {**self.params, **MORE.get(self.more, {})}


@attrs.frozen(kw_only=True)
class Scenario:
    """One simulation.

    Attributes:
        options, others: Of the first pool, and of those beside it.
        delay: The longest time that a frame is under way, in seconds.
    """

    seed: int
    options: dict[str, Any]
    callers: tuple[Caller, ...]
    faults: tuple[Fault, ...]
    delay: float
    close_at: float | None
    others: tuple[dict[str, Any], ...] = ()

    def only(
        self, callers: set[int] | None = None, faults: set[int] | None = None, dropped: set[str] | None = None
    ) -> Scenario:
        """A part of it: the callers and faults of these numbers, without these options; None leaves all."""
        return attrs.evolve(
            self,
            callers=tuple(c for c in self.callers if callers is None or c.number in callers),
            faults=tuple(f for f in self.faults if faults is None or f.number in faults),
            options={k: v for k, v in self.options.items() if k not in (dropped or ())},
            close_at=None if dropped and "close_at" in dropped else self.close_at,
        )


def _caller(rng: random.Random, number: int, quick: bool) -> Caller:
    kind = rng.choice(["execute"] * 8 + ["stream"] * 3 + ["map"] * 2 + ["session"] * 2 + ["nested"] * 2 + ["operate"])
    timeout = rng.choice([None, None, 0.005, 0.05, 0.5])
    patience = rng.choice([float("inf")] * 3 + [0.0, 0.003, 0.05])
    # A timeout and a scope at the same moment: either may win, and only one.
    if timeout is not None and rng.random() < 0.1:
        patience = timeout
    seconds = rng.choice([0] * 15 + [0.1] if quick else [0, 0.001, 0.01, 0.1])
    params: dict[str, Any] = {"seconds": seconds, "number": number}
    params.update({"deaf": True} if rng.random() < 0.08 else {}, **({"late": True} if rng.random() < 0.1 else {}))
    return Caller(
        number=number,
        kind=kind,
        at=round(rng.uniform(0, 0.1 if quick else 1.5), 4),
        tool=rng.choice(_OPERATIONS) if kind == "operate" else rng.choice(["work", "work", "again"]),
        params=params,
        timeout=timeout,
        patience=patience,
        priority=rng.randint(-1, 1),
        count=rng.choice([1, 2, 5, 40] if kind == "stream" else [1, 3, 8]),
        leave_at=rng.choice([None, None, 0, 3]),
        pause=rng.choice([0, 0, 0.02]),
        affinity=rng.choice(["hint", "strict_queue", "strict_fail_fast"]),
        on_lost=rng.choice(["error", "rebind"]),
    )


def _unruly(seed: int, callers: tuple[Caller, ...], options: dict[str, Any]) -> tuple[Caller, ...]:
    """Callers of some scenarios call tools that end their worker, that keep it from answering anything while they run, or
    that hear no cancel and, where their workers are killed for it, never end."""
    rng = random.Random(f"{seed}:unruly")
    lethal = rng.choice([0.0, 0.0, 0.1, 0.4])
    stuck = rng.choice([0.0, 0.1, 0.4]) if options["threads"] > 1 else rng.choice([0.0] * 4 + [0.15])
    grinding = rng.choice([0.0, 0.0, 0.15])
    seconds = 1000 if options["on_cancel"] == "kill" else 1
    found = []
    for caller in callers:
        chance, timeout = rng.random(), rng.choice([0.05, 0.2, 0.5, 1.0])
        if caller.kind != "operate" and chance < lethal:
            caller = attrs.evolve(caller, params={**caller.params, "lethal": True})
        elif caller.kind != "operate" and chance < lethal + stuck:
            params = {**caller.params, "seconds": seconds, "stuck": True, "deaf": False}
            caller = attrs.evolve(caller, params=params, timeout=timeout)
        elif caller.kind != "operate" and chance > 1 - grinding:
            limits = {"timeout": None, "patience": float("inf")} if timeout < 0.5 else {}
            caller = attrs.evolve(caller, params={**caller.params, "grind": True}, **limits)
        found.append(caller)
    return tuple(found)


def _more_options(seed: int, options: dict[str, Any]) -> dict[str, Any]:
    """Options of some scenarios beside the usual ones, and policies."""
    rng = random.Random(f"{seed}:options")
    more: dict[str, Any] = {}
    if rng.random() < 0.2:
        more["threads"] = rng.choice([2, 4])
    if rng.random() < 0.4 and not options["fair"]:
        more["aging"] = rng.choice([None, 0.005])
    if rng.random() < 0.3:
        more["poison_limit"] = rng.choice([None, 1, 3])
    if rng.random() < 0.15:
        # A pool without workers could take nothing, ever.
        more["max_queue"] = None if options.get("min_size") == 0 else rng.choice([None, 0])
    if rng.random() < 0.4:
        more["limits"] = [_limit(rng) for _ in range(rng.choice([0, 1, 1, 2]))]
        more["retry"] = rng.choice([None, sp.RetryConfig(attempts=3, delay=0.02, on=["OSError"])])
        more["hedge"] = rng.choice([None, sp.HedgeConfig(delay=0.005, max_share=1.0)])
        more["circuit"] = rng.choice([None, None, sp.CircuitConfig(min_calls=4, open_for=0.1, window=1.0)])
    return more


def _limit(rng: random.Random) -> sp.LimitConfig:
    rate = rng.choice([None, 20.0, 200.0])
    return sp.LimitConfig(
        tools=rng.choice([(), (), ("work",), ("again", "stream")]),
        per=rng.choice(["tool", "session", "pool"]),
        rate=rate,
        burst=None if rate is None else rng.choice([None, 1, 3]),
        concurrency=rng.choice([1, 2, 3]) if rate is None or rng.random() < 0.5 else None,
        wait=rng.random() < 0.85,
        max_waiting=rng.choice([1, 1000, 1000]),
    )


def _odd_ones(seed: int, callers: tuple[Caller, ...]) -> tuple[Caller, ...]:
    """Callers of every scenario send what users send: much data, odd text, huge numbers; their tools and blocks fail; their maps
    and sessions have other options."""
    rng = random.Random(f"{seed}:odd")
    found = []
    for caller in callers:
        chance = rng.random()
        if caller.kind != "operate" and chance < 0.06:
            caller = attrs.evolve(caller, params={**caller.params, "fails": True})
        caller = attrs.evolve(
            caller,
            raises=rng.choice([None] * 8 + [0, 1]),
            inputs=rng.choice(["list", "list", "slow", "raising"]),
            limit=rng.choice([None, 1, 3]),
            ordered=rng.random() < 0.6,
            errors=rng.random() < 0.4,
            ttl=rng.choice([None, None, None, 0.02, 0.5]),
            ends=rng.random() < 0.15,
            more=rng.choice([*_MORE, *[""] * 30]),
        )
        found.append(caller)
    return tuple(found)


def _large(seed: int, callers: tuple[Caller, ...], options: dict[str, Any]) -> tuple[Caller, ...]:
    """Callers of some scenarios send what travels through shared memory, of which there is more or less."""
    rng = random.Random(f"{seed}:large")
    if rng.random() < 0.75:
        return callers
    options["shm_limit"] = rng.choice([0, 2_000_000, 8_000_000, 1 << 30])
    return tuple(
        attrs.evolve(caller, more=rng.choice(["large", "megabytes", "array", "array"]))
        if rng.random() < 0.3 and not caller.more
        else caller
        for caller in callers
    )


def _beside(seed: int, options: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The other pools of some scenarios."""
    rng = random.Random(f"{seed}:pools")
    if rng.random() < 0.7:
        return ()
    kept = ("cancel_grace", "on_cancel", "cancel_set_ttl", "stop_grace", "startup_timeout", "heartbeat_interval")
    return tuple(
        {
            **{name: options[name] for name in kept},
            "name": f"other{number}",
            "size": rng.choice([1, 1, 2]),
            "threads": rng.choice([1, 1, 2]),
            "max_queue": rng.choice([0, 2, 1000, 1000]),
            "queue_timeout": rng.choice([0.02, 10.0, 10.0]),
            "restart_limit": rng.choice([1000, 0]),
            "prefetch": rng.choice([16, 0]),
            "limits": [_limit(rng)] if rng.random() < 0.3 else [],
        }
        for number in range(1, rng.choice([2, 2, 3]))
    )


def _spread(seed: int, callers: tuple[Caller, ...], pools: int) -> tuple[Caller, ...]:
    """Callers use several pools, and call through one into another; some close one while the others run."""
    if pools == 1:
        return callers
    rng = random.Random(f"{seed}:spread")
    found = []
    for caller in callers:
        pool = rng.choice([0, rng.randrange(pools)])
        path = tuple(rng.randrange(pools) for _ in range(rng.choice([1, 1, 2, 3])))
        # Many, since this is what these scenarios are for.
        kind = "nested" if rng.random() < 0.25 and caller.kind == "execute" else caller.kind
        closes = kind == "operate" and pool > 0 and rng.random() < 0.4
        found.append(attrs.evolve(caller, pool=pool, path=path, kind=kind, tool="close" if closes else caller.tool))
    return tuple(found)


def _asked_to_end(seed: int, size: int, number: int) -> list[Fault]:
    """Workers of some scenarios that somebody else asks to end."""
    rng = random.Random(f"{seed}:leave")
    return [
        Fault(
            number=number + i,
            kind="leave",
            worker=rng.randint(1, size + 2),
            frame=rng.choice([1, 2, 3, rng.randint(1, 60)]),
        )
        for i in range(rng.choice([0, 0, 0, 1, 3]))
    ]


def _at_some_kind(seed: int, size: int, number: int) -> list[Fault]:
    """Faults of some scenarios that happen at a frame of one kind, so that each kind has its share."""
    rng = random.Random(f"{seed}:at")
    found = []
    for i in range(rng.choice([0, 0, 1, 3])):
        inward = rng.random() < 0.5
        kinds = ("crash_before", "crash_after", "leave") if inward else (*FRAME_FAULTS, "leave")
        at = rng.choice(HOST_FRAMES if inward else WORKER_FRAMES)
        found.append(Fault(number=number + i, kind=rng.choice(kinds), worker=rng.randint(1, size + 1), frame=1, at=at))
    return found


def _odd(seed: int, fault: Fault) -> Fault:
    """Some workers that do not start offer something else than the others instead."""
    odd = fault.kind == "start_fails" and random.Random(f"{seed}:{fault.number}").random() < 0.5
    return attrs.evolve(fault, kind="odd") if odd else fault


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    quick = rng.random() < 0.5
    size = rng.randint(1, 4)
    options: dict[str, Any] = {
        "size": size,
        "threads": rng.choice([1, 1, 3]),
        "max_queue": rng.choice([2, 1000, 1000]),
        "queue_timeout": rng.choice([0.02, 10.0]),
        "cancel_grace": 0.2,
        "on_cancel": rng.choice(["kill", "kill", "abandon"]),
        "max_requests": rng.choice([None, None, 5]),
        "restart_limit": rng.choice([1000, 0, 2]),
        "cancel_set_size": rng.choice([2, 1024]),
        "cancel_set_ttl": 1.0,
        "stop_grace": 2.0,
        "startup_timeout": 1.0,
        "heartbeat_interval": 0.2,
        "reject_hopeless": rng.random() < 0.2,
        "fair": rng.random() < 0.15,
        "spares": rng.choice([0, 0, 0, 1]),
        "surge": rng.choice([1, 2]),
        "prefetch": rng.choice([16, 16, 2, 0]),
    }
    if rng.random() < 0.25:
        options |= {"min_size": rng.choice([0, 1]), "max_size": 6, "target_wait": 0.02, "scale_down_after": 0.2}
    callers = tuple(_caller(rng, number, quick) for number in range(rng.randint(10, 35)))
    options |= _more_options(seed, options)
    faults = []
    for number in range(rng.choice([0, 1, 2, 4, 8])):
        starting = rng.random() < 0.3
        faults.append(
            Fault(
                number=number,
                kind=rng.choice(START_FAULTS[:-1] if starting else FRAME_FAULTS),
                worker=rng.randint(1, size + 4),
                frame=0 if starting else rng.choice([1, 2, 3, rng.randint(1, 60)]),
            )
        )
    callers = _large(seed, _odd_ones(seed, _unruly(seed, callers, options)), options)
    others = _beside(seed, options)
    callers = _spread(seed, callers, 1 + len(others))
    if options.get("poison_limit", 1) is None and any(caller.params.get("lethal") for caller in callers):
        # It would be run again for ever.
        del options["poison_limit"]
    return Scenario(
        seed=seed,
        options=options,
        callers=callers,
        faults=(
            *(_odd(seed, fault) for fault in faults),
            *(asked := _asked_to_end(seed, size, len(faults))),
            *_at_some_kind(seed, size, len(faults) + len(asked)),
        ),
        delay=0.0002 if quick else 0.002,
        close_at=round(rng.uniform(0.01, 1.0), 4) if rng.random() < 0.25 else None,
        others=others,
    )
