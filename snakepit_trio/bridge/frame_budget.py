"""A budget for frames that cause work without being requests.

PING and SETTINGS require answers, RST_STREAM discards begun work, PRIORITY and empty DATA have no purpose here, and
DATA of a few bytes in the middle of a message has almost none. An honest client sends few of them beside its requests;
a flood of them is a well-known attack (CVE-2019-9512, -9515, -9518, CVE-2023-44487). Each costs a part of a budget that
time and finished requests refill. When it is spent, the connection ends with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from collections.abc import Mapping

from snakepit_trio.wire.http2.rules import events

__all__ = ["COSTS", "CRUMB", "CRUMB_COST", "EMPTY_DATA", "REFUSED", "Flooded", "Guard"]

_BURST = 2000.0
_PER_SECOND = 400.0
#: The cost of each of the engine's events; others cost nothing.
COSTS: Mapping[type, float] = {
    events.PingReceived: 1.0,
    events.PingAckReceived: 0.5,
    events.RemoteSettingsChanged: 4.0,
    events.SettingsAcknowledged: 1.0,
    events.PriorityUpdated: 1.0,
    events.StreamReset: 4.0,
    events.UnknownFrameReceived: 1.0,
    # An honest reader of small messages sends one for each message.
    events.WindowUpdated: 0.02,
}
EMPTY_DATA = 1.0
#: A DATA frame of at most this size that neither begins nor ends a message; and its cost.
CRUMB, CRUMB_COST = 32, 1.0
REFUSED = 20.0
_REFUND = 4.0


class Flooded(Exception):
    """The budget is spent."""


class Guard:
    """The budget of one connection. The caller provides the clock."""

    def __init__(self, now: float) -> None:
        self._left = _BURST
        self._at = now

    def __repr__(self) -> str:
        return f"<Guard left={self._left:.0f}>"

    def charge(self, cost: float, now: float) -> None:
        """Deduct a cost.

        Raises:
            Flooded: The budget is spent.
        """
        left = min(_BURST, self._left + (now - self._at) * _PER_SECOND) - cost
        self._at = now
        self._left = left
        if left < 0:
            raise Flooded

    def refund(self) -> None:
        """Refund a part for an answered request, because a working client may also cancel."""
        self._left = min(_BURST, self._left + _REFUND)
