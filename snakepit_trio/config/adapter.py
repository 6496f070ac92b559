"""What somebody may give for an adapter who has the adapter itself at hand, and what is to be written instead."""

from __future__ import annotations

from types import ModuleType
from typing import NoReturn

from snakepit_trio._config_checks import refuse
from snakepit_trio._exceptions import attempt
from snakepit_trio.errors import ConfigError

__all__ = ["refuse_adapter"]


def refuse_adapter(found: object) -> NoReturn:
    """Refuse an adapter that is not text.

    Raises:
        ConfigError: Says what to write.
    """
    if isinstance(found, ModuleType):
        what, module, name = "the module itself", found.__name__, ""
    elif isinstance(found, type):
        what, module, name = "the class itself", found.__module__, found.__qualname__
    elif callable(found):
        what, module, name = "a function", attempt("", getattr, found, "__module__"), ""
    else:
        kind = type(found)
        tools = any(hasattr(attempt(None, getattr, kind, key), "__snakepit_tool__") for key in dir(kind))
        if not tools:
            refuse("adapter", found, "the name of a module, such as 'my_module' or 'my_module:Class'")
        what, module, name = f"a {kind.__name__}", kind.__module__, kind.__qualname__
    if module == "__main__":
        advice = "the name under which the workers can import this script, or another module"
    elif not isinstance(module, str) or not module or "<locals>" in name:
        advice = "the name of a module that the workers can import"
    else:
        advice = repr(f"{module}:{name}" if name else module)
        if what == "a function":
            advice += ", its module, where @snakepit_trio.tool marks the functions that are tools"
    raise ConfigError(
        f"adapter: expected a name that the workers import, got {what}: write {advice}",
        details={"source": "code", "key": "adapter", "expected": advice},
    )
