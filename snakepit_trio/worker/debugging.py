"""``breakpoint()`` in a tool: a worker has no terminal to debug at."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["install"]


def install() -> None:
    """Refuse ``breakpoint()`` in this process, unless ``$PYTHONBREAKPOINT`` or the application says what it does."""
    if sys.breakpointhook is sys.__breakpointhook__ and not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = _refuse


def _refuse(*args: Any, **options: Any) -> Any:
    raise RuntimeError(
        "breakpoint() in a worker, which has no terminal: name a debugger that listens on a port, "
        'by env={"PYTHONBREAKPOINT": "module.function"} of the pool; see "Debuggers" in docs/testing.md'
    )
