"""Which event loop an adapter's async tools run on."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["choose_backend"]


def choose_backend(asked: str, module: ModuleType, host_backend: str) -> str:
    """``"trio"`` or ``"asyncio"``.

    ``"auto"`` goes by the adapter's module: if it imports one of ``trio`` and ``asyncio`` under any name, that one; if
    both, the host's; if neither, Trio when something that it imports has brought Trio in, else asyncio.
    """
    if asked != "auto":
        return asked
    # Not isinstance, which asks the values: some raise whatever they are asked.
    modules = [value for value in vars(module).values() if issubclass(type(value), ModuleType)]
    imported = {str(value.__name__).partition(".")[0] for value in modules}
    uses = imported & {"trio", "asyncio"}
    if len(uses) == 2:
        return host_backend
    if uses:
        return uses.pop()
    return "trio" if "trio" in sys.modules else "asyncio"
