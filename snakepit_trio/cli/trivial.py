"""The adapter that ``snakepit diagnose`` measures with when no other is named."""

from __future__ import annotations

import snakepit_trio as sp


@sp.tool(idempotent=True)
def nothing(text: str = "") -> str:
    """Give back what was given."""
    return text
