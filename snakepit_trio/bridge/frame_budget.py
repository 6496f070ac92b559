"""How much a client may ask for without asking for anything: a budget for the frames that only make us work.

PING and SETTINGS make us answer, RST_STREAM throws away what we began, PRIORITY and empty DATA are for nothing, and DATA of a
few bytes in the middle of a message for next to nothing. An honest client sends few of them beside its requests; a flood
of them is a well-known attack (CVE-2019-9512, -9515, -9518, CVE-2023-44487). Each costs some of a budget that time and
finished requests refill; when it is spent, the connection ends with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from collections.abc import Mapping

from snakepit_trio.wire.http2.rules import events

__all__ = ["COSTS", "CRUMB", "CRUMB_COST", "EMPTY_DATA", "REFUSED", "Flooded", "Guard"]

_BURST = 2000.0
_PER_SECOND = 400.0
#: What each of the engine's events costs; those that are not here cost nothing.
COSTS: Mapping[type, float] = {
    events.PingReceived: 1.0,
    events.PingAckReceived: 0.5,
    events.RemoteSettingsChanged: 4.0,
    events.SettingsAcknowledged: 1.0,
    events.PriorityUpdated: 1.0,
    events.StreamReset: 4.0,
    events.UnknownFrameReceived: 1.0,
    # An honest reader of small messages sends one for each.
    events.WindowUpdated: 0.02,
}
EMPTY_DATA = 1.0
#: A DATA frame of so few bytes that neither begins nor ends a message; and what it costs.
CRUMB, CRUMB_COST = 32, 1.0
REFUSED = 20.0
_REFUND = 4.0


class Flooded(Exception):
    """The budget is spent."""


class Guard:
    """The budget of one connection. The clock is the caller's."""

    def __init__(self, now: float) -> None:
        self._left = _BURST
        self._at = now

    def __repr__(self) -> str:
        return f"<Guard left={self._left:.0f}>"

    def charge(self, cost: float, now: float) -> None:
        """Take this much.

        Raises:
            Flooded: It is not there.
        """
        left = min(_BURST, self._left + (now - self._at) * _PER_SECOND) - cost
        self._at = now
        self._left = left
        if left < 0:
            raise Flooded

    def refund(self) -> None:
        """A request has got its answer: whoever works may also cancel."""
        self._left = min(_BURST, self._left + _REFUND)
