"""On the path of a process, this kills a host when the process comes to its n-th line of the files that are named.

``SNAKEPIT_STEP``: n, 0 for none. ``SNAKEPIT_STEP_FILES``: how the files' names end, with spaces between. ``SNAKEPIT_STEP_HOST``:
whom to kill; without it nothing is counted. A host that is to kill itself says so by :func:`count`.
"""

import os
import signal
import sys
import threading

_files = tuple(os.environ.get("SNAKEPIT_STEP_FILES", "").split())
_step = int(os.environ.get("SNAKEPIT_STEP", "0"))
seen = 0


def count(host):
    """Count from here on, in this thread and those that it starts."""

    def trace(frame, event, arg):
        global seen  # noqa: PLW0603
        if not frame.f_code.co_filename.endswith(_files):
            return None
        if event == "line":
            seen += 1
            if seen == _step:
                os.kill(host, signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


if _files and "SNAKEPIT_STEP_HOST" in os.environ:
    count(int(os.environ["SNAKEPIT_STEP_HOST"]))
