"""The processes that an adapter's import starts: its helpers. They end with the process that has imported it.

The importing process reports them to the host, because the host may not be able to find them: they may have their own
sessions and no parent. While the import runs, this process adopts orphans, where the system can do that, so all of them
are its descendants at the end of the import; elsewhere such orphans are found by their environment. Processes that tools
start later belong to the tools.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from snakepit_trio._platform import Identity, adopt_orphans, descendants, orphans

__all__ = ["helpers_of_import"]


@contextmanager
def helpers_of_import() -> Iterator[list[Identity]]:
    """Wrap an import; the yielded list contains the helpers when the block has ended in any way."""
    found: list[Identity] = []
    me = os.getpid()
    adopt_orphans(True)
    try:
        yield found
    finally:
        # Not in a child that was forked in the block and leaves it.
        if os.getpid() == me:
            found += [*descendants(me), *orphans(me, ("SNAKEPIT_RUN_ID", "SNAKEPIT_WORKER_ID"))]
            adopt_orphans(False)
