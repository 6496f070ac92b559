"""The options of the policies: frozen values, checked when they are made, loadable from TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import attrs

from snakepit_trio._config_checks import TINY, Options, as_tuple, check_types, refuse, within

__all__ = ["TIMEOUTS", "CircuitConfig", "HedgeConfig", "LimitConfig", "RetryConfig", "Timeouts"]


class Timeouts(NamedTuple):
    """What a timeout profile stands for, in seconds; None: no limit."""

    timeout: float | None
    stream_timeout: float | None
    queue_timeout: float | None


#: The timeout profiles by name.
TIMEOUTS: Mapping[str, Timeouts] = {
    "balanced": Timeouts(300.0, 900.0, None),
    "production": Timeouts(300.0, 900.0, 10.0),
    "production_strict": Timeouts(60.0, 300.0, 5.0),
    "development": Timeouts(900.0, 3600.0, None),
    "ml_inference": Timeouts(900.0, 3600.0, None),
    "batch": Timeouts(3600.0, None, None),
}


@attrs.frozen(kw_only=True)
class RetryConfig(Options):
    """Try a call again that failed, within its deadline.

    A call that never started (its queue was full, it waited too long, its session's worker was busy) may always be tried
    again; one that did start only when it is idempotent.

    Attributes:
        attempts: How often it is tried in all.
        delay: The pause before the second attempt, in seconds; it doubles from one to the next.
        max_delay: What the pause grows to.
        jitter: A random part of up to so many seconds is added to each pause.
        on: Exceptions of tools that an idempotent call is tried again for, by name: ``"ConnectionError"`` or
            ``"module.QualName"``; their subclasses too.
    """

    attempts: int = within(3, 2, 100)
    delay: float = within(0.05, 0)
    max_delay: float = within(5.0, 0)
    jitter: float = within(0.1, 0)
    on: Sequence[str] = attrs.field(default=(), converter=as_tuple)

    def __attrs_post_init__(self) -> None:
        check_types(self)
        if self.max_delay < self.delay:
            refuse("max_delay", self.max_delay, f"at least delay, which is {self.delay:g}")


@attrs.frozen(kw_only=True)
class CircuitConfig(Options):
    """Stop calling for a while what fails again and again.

    Attributes:
        per: What has a circuit of its own: each ``"tool"``, or the ``"pool"``.
        failure_rate: It opens when at least this part of the calls in the window has failed.
        min_calls: It opens after no fewer calls than this.
        window: How far back it looks, in seconds.
        open_for: How long it stays open before it is probed, in seconds.
        probes: How many calls may probe it at once; it closes when so many have succeeded.
        ignore: Exceptions of tools that are no failure, by name, such as ``"ValueError"``; their subclasses too.
    """

    per: Literal["tool", "pool"] = "tool"
    failure_rate: float = within(0.5, 0.01, 1.0)
    min_calls: int = within(10, 1)
    window: float = within(30.0, TINY)
    open_for: float = within(10.0, TINY)
    probes: int = within(1, 1, 1000)
    ignore: Sequence[str] = attrs.field(default=(), converter=as_tuple)

    def __attrs_post_init__(self) -> None:
        check_types(self)


@attrs.frozen(kw_only=True)
class LimitConfig(Options):
    """Bound how many calls run at once, or begin in a second.

    Attributes:
        tools: The tools that it is for; all when empty.
        per: What it is counted for: each ``"tool"``, each ``"session"`` (calls without one are free), or the ``"pool"``.
        concurrency: How many calls may be under way; None: any number.
        rate: How many may begin in a second, on average; None: any number.
        burst: How many may begin at once after a quiet time; None: as many as in one second, at least one.
        wait: A call that comes too early waits, within its deadline; False: it is refused with ``QuotaExceeded``.
        max_waiting: How many may wait; more are refused with ``QueueFull``.
    """

    tools: Sequence[str] = attrs.field(default=(), converter=as_tuple)
    per: Literal["tool", "session", "pool"] = "tool"
    concurrency: int | None = within(None, 1)
    rate: float | None = within(None, TINY)
    burst: int | None = within(None, 1)
    wait: bool = True
    max_waiting: int = within(1000, 0)

    def __attrs_post_init__(self) -> None:
        check_types(self)
        if self.concurrency is None and self.rate is None:
            refuse("concurrency", None, "a number, or one for rate")
        if self.burst is not None and self.rate is None:
            refuse("burst", self.burst, "a rate beside it")


@attrs.frozen(kw_only=True)
class HedgeConfig(Options):
    """Ask a second worker when the first is slow, and take the answer that comes first. For idempotent tools only.

    Calls of sessions are not hedged: their order and their worker matter.

    Attributes:
        delay: How long the first one may take before a second is sent, in seconds.
        tools: The tools that it is for; all idempotent ones when empty.
        max_share: At most this part of the calls is sent twice, so that a pool that is slow throughout is not made slower.
    """

    delay: float = within(attrs.NOTHING, TINY)
    tools: Sequence[str] = attrs.field(default=(), converter=as_tuple)
    max_share: float = within(0.1, 0.001, 1.0)

    def __attrs_post_init__(self) -> None:
        check_types(self)
