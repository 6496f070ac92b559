"""The adapter that ``snakepit diagnose`` measures by default."""

from __future__ import annotations

import snakepit_trio as sp


@sp.tool(idempotent=True)
def nothing(text: str = "") -> str:
    """Return the argument."""
    return text
