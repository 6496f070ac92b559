"""``.. config-reference:: PoolConfig``: a configuration class as a list of its options, from the class itself.

The text of an option is what the class's docstring says under ``Attributes``; its type, default and range are the
field's own, so that the page can't differ from the code.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import attrs
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

import snakepit_trio as sp

__all__ = ["descriptions", "setup"]

_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")


def descriptions(cls: type) -> dict[str, str]:
    """What the docstring's Attributes section says, by field."""
    found: dict[str, str] = {}
    current: list[str] = []
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    for line in section.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            current = [name.strip() for name in entry[1].split(",")]
            found.update(dict.fromkeys(current, entry[2].strip()))
        elif line.startswith("        "):
            for name in current:
                found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
        return "depends on the machine" if field.name != "pools" else "none"
    return repr(field.default)


class ConfigReference(Directive):
    """The directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        cls = getattr(sp, self.arguments[0])
        texts = descriptions(cls)
        lines: list[str] = []
        for field in attrs.fields(cls):
            kind = re.sub(r"\b(typing|collections\.abc)\.", "", str(field.type))
            low, high = field.metadata.get("range", (None, None))
            limits = "" if low is None else f", at least {low:g}" if high == math.inf else f", {low:g} to {high:g}"
            lines += [f"``{field.name}``", f"   *{kind}*, default ``{_default(field)}``{limits}", ""]
            lines += [f"   {texts.get(field.name, '')}", ""]
        node = nodes.container()
        self.state.nested_parse(StringList(lines, source=cls.__qualname__), 0, node)
        return node.children


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("config-reference", ConfigReference)
    return {"parallel_read_safe": True}
