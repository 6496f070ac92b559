"""The launcher that docs/guides/launchers.md shows in full, as the page has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.documents import ROOT, read_page

__all__ = ["far_launcher"]

_MODULES = ("far", "far_node")


@contextmanager
def far_launcher(place: Path) -> Iterator[ModuleType]:
    """Its module ``far``, with ``far_node`` beside it for ``python -m far_node`` of this test's children."""
    for block in read_page(ROOT / "docs" / "guides" / "launchers.md").blocks:
        if block.name:
            (place / block.name).write_text(block.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.setenv("PYTHONPATH", f"{place}:{ROOT}")
        import far

        try:
            yield far
        finally:
            for name in _MODULES:
                sys.modules.pop(name, None)
