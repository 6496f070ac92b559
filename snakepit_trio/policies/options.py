"""The options of the policies: frozen values, checked when they are created, loadable from TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import attrs

from snakepit_trio._config_checks import TINY, Options, as_tuple, check_types, refuse, within

__all__ = ["TIMEOUTS", "CircuitConfig", "HedgeConfig", "LimitConfig", "RetryConfig", "Timeouts"]


class Timeouts(NamedTuple):
    """The values of a timeout profile, in seconds; None: no limit."""

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
    """Retry a failed call, within its deadline.

    A call that never began (its queue was full, it waited too long, its session's worker was busy) may always be
    retried; a call that had begun only if it is idempotent.

    Attributes:
        attempts: The largest number of attempts.
        delay: The pause before the second attempt, in seconds; it doubles with each further attempt.
        max_delay: The largest pause, in seconds.
        jitter: The largest random addition to each pause, in seconds.
        on: Exceptions of tools for which an idempotent call is retried, by name: ``"ConnectionError"`` or
            ``"module.QualName"``; including subclasses.
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
    """Stop calling a tool for some time when it fails repeatedly.

    Attributes:
        per: The scope of a circuit: each ``"tool"``, or the ``"pool"``.
        failure_rate: The circuit opens when at least this share of the calls in the window has failed.
        min_calls: The smallest number of calls in the window for which the circuit opens.
        window: The length of the window, in seconds.
        open_for: The time for which the circuit stays open before it is probed, in seconds.
        probes: The number of simultaneous probes; the circuit closes when this number of probes has succeeded.
        ignore: Exceptions of tools that do not count as failures, by name, such as ``"ValueError"``; including
            subclasses.
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
    """Limit the number of concurrent calls, or of calls per second.

    Attributes:
        tools: The tools that the limit applies to; all if empty.
        per: The scope of the count: each ``"tool"``, each ``"session"`` (calls without a session are not limited), or
            the ``"pool"``.
        concurrency: The largest number of calls at once; None: no limit.
        rate: The largest number of calls per second, on average; None: no limit.
        burst: The number of calls that may begin at once after a quiet time; None: the calls of one second, and at
            least one.
        wait: Whether a call beyond the limit waits, within its deadline. False: it is refused with ``QuotaExceeded``.
        max_waiting: The largest number of waiting calls; further ones are refused with ``QueueFull``.
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
    """Send a slow call to a second worker too, and take the first answer. Only for idempotent tools.

    Calls of sessions are not hedged, because their order and their worker matter.

    Attributes:
        delay: The time after which the second call is sent, in seconds.
        tools: The tools that hedging applies to; all idempotent ones if empty.
        max_share: The largest share of the calls that is sent twice, so that hedging does not slow an overloaded pool
            further.
    """

    delay: float = within(attrs.NOTHING, TINY)
    tools: Sequence[str] = attrs.field(default=(), converter=as_tuple)
    max_share: float = within(0.1, 0.001, 1.0)

    def __attrs_post_init__(self) -> None:
        check_types(self)
