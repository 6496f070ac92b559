"""The choice of the event loop for an adapter's async tools."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["choose_backend"]


def choose_backend(asked: str, module: ModuleType, host_backend: str) -> str:
    """Return ``"trio"`` or ``"asyncio"``.

    ``"auto"`` chooses by the adapter's module: the one of ``trio`` and ``asyncio`` that it imports under any name; if
    both, the host's; if neither, Trio if one of its imports has imported Trio, else asyncio.
    """
    if asked != "auto":
        return asked
    # Not isinstance, which runs code of the values, and some raise on anything.
    modules = [value for value in vars(module).values() if issubclass(type(value), ModuleType)]
    imported = {str(value.__name__).partition(".")[0] for value in modules}
    uses = imported & {"trio", "asyncio"}
    if len(uses) == 2:
        return host_backend
    if uses:
        return uses.pop()
    return "trio" if "trio" in sys.modules else "asyncio"
