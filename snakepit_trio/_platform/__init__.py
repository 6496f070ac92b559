"""The platform seam: what is asked of the system beyond what all Unix systems have.

Two modules give the same names: :mod:`.linux`, by what only Linux has, and :mod:`.portable`, by POSIX, the standard library
and psutil. ``SNAKEPIT_PORTABLE=1`` selects the portable form on Linux, too; it is read once, at import. Workers, templates and
helpers inherit it with their environment, so that all processes of a run are in one form.

Nobody outside of this package uses pidfds, ``/proc``, peer credentials or the like; a test looks for that. docs/architecture.md
says what the portable form can't promise.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from .facts import Identity, Peer, ProcessFacts

__all__ = [
    "FORM",
    "OFFERS_FILES",
    "SOCKET_PATH_MAX",
    "VARIABLE",
    "Identity",
    "LifelineWatch",
    "Peer",
    "ProcessFacts",
    "ProcessHandle",
    "adopt_orphans",
    "arm_lifeline",
    "boot_id",
    "collapse_pages",
    "cpu_time",
    "cpu_time_of_family",
    "deleted_directory",
    "descendants",
    "discard_pages",
    "fork_watched",
    "has_shared_files",
    "in_sessions",
    "is_same",
    "make_private_file",
    "make_shared_file",
    "most_processes",
    "oom_kills",
    "open_child",
    "open_descriptors",
    "open_forked",
    "open_process",
    "open_shared_file",
    "orphans",
    "own_processes",
    "peer_of",
    "populate_pages",
    "punch_hole",
    "receive_descriptors",
    "reserve_space",
    "resident_memory",
    "root_users",
    "start_time",
    "thread_count",
    "was_given",
    "what_is_missing",
]

#: The environment variable that selects the portable form with "1".
VARIABLE = "SNAKEPIT_PORTABLE"
#: Which form this process uses: "linux" or "portable".
FORM = "linux" if sys.platform == "linux" and os.environ.get(VARIABLE) != "1" else "portable"

if TYPE_CHECKING or FORM == "linux":
    from .linux import (
        OFFERS_FILES,
        SOCKET_PATH_MAX,
        LifelineWatch,
        ProcessHandle,
        adopt_orphans,
        arm_lifeline,
        boot_id,
        collapse_pages,
        cpu_time,
        cpu_time_of_family,
        deleted_directory,
        descendants,
        discard_pages,
        fork_watched,
        has_shared_files,
        in_sessions,
        is_same,
        make_private_file,
        make_shared_file,
        most_processes,
        oom_kills,
        open_child,
        open_descriptors,
        open_forked,
        open_process,
        open_shared_file,
        orphans,
        own_processes,
        peer_of,
        populate_pages,
        punch_hole,
        receive_descriptors,
        reserve_space,
        resident_memory,
        root_users,
        start_time,
        thread_count,
        was_given,
        what_is_missing,
    )
else:
    from .portable import (
        OFFERS_FILES,
        SOCKET_PATH_MAX,
        LifelineWatch,
        ProcessHandle,
        adopt_orphans,
        arm_lifeline,
        boot_id,
        collapse_pages,
        cpu_time,
        cpu_time_of_family,
        deleted_directory,
        descendants,
        discard_pages,
        fork_watched,
        has_shared_files,
        in_sessions,
        is_same,
        make_private_file,
        make_shared_file,
        most_processes,
        oom_kills,
        open_child,
        open_descriptors,
        open_forked,
        open_process,
        open_shared_file,
        orphans,
        own_processes,
        peer_of,
        populate_pages,
        punch_hole,
        receive_descriptors,
        reserve_space,
        resident_memory,
        root_users,
        start_time,
        thread_count,
        was_given,
        what_is_missing,
    )
