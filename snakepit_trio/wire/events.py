"""Events of tools on their way to the host."""

from __future__ import annotations

__all__ = ["EVENT_LIMIT", "EVENTS_WAITING"]

#: Largest event, measurements and metadata together, in bytes.
EVENT_LIMIT = 16 * 1024
#: How many events of one worker may wait to be sent; more are dropped.
EVENTS_WAITING = 1000
