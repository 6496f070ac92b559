"""What only one form of the platform seam promises; see docs/architecture.md, "The platform seam"."""

from __future__ import annotations

import pytest

from snakepit_trio import _platform

__all__ = ["linux_form"]


def linux_form(reason: str) -> pytest.MarkDecorator:
    """Marks a test that the portable form can't pass, and says why."""
    return pytest.mark.skipif(_platform.FORM != "linux", reason=f"the portable form: {reason}")
