"""The processes that an adapter's import starts: its helpers. They end with the process that has imported it.

Whoever imports tells the host of them, since they may be where nothing of the host's reaches: in sessions of their own, and
with nobody for a parent. While the import runs, this process is the one that gets whoever loses its parent, where the system
can do that, so all of them are its descendants when it has ended; elsewhere such orphans are found by their environment. What
tools start later is theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from snakepit_trio._platform import Identity, adopt_orphans, descendants, orphans

__all__ = ["helpers_of_import"]


@contextmanager
def helpers_of_import() -> Iterator[list[Identity]]:
    """Around an import; the list that it gives has the helpers when the block has ended, whichever way."""
    found: list[Identity] = []
    me = os.getpid()
    adopt_orphans(True)
    try:
        yield found
    finally:
        # Not in a child that has been forked in the block, and comes out of it.
        if os.getpid() == me:
            found += [*descendants(me), *orphans(me, ("SNAKEPIT_RUN_ID", "SNAKEPIT_WORKER_ID"))]
            adopt_orphans(False)
