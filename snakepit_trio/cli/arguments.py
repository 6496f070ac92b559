"""A tool's arguments on a command line: one JSON object, or ``KEY=VALUE`` words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["Arguments", "read_arguments"]

_PAIR = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class Arguments:
    """The arguments of a call, before the tool's schema is known.

    Attributes:
        values: The values as they are in JSON; of words, the texts.
        typed: Whether ``values`` are final.
    """

    def __init__(self, values: dict[str, Any], *, typed: bool) -> None:
        self.values = values
        self.typed = typed

    def for_tool(self, parameters_schema: str | None) -> dict[str, Any]:
        """Return the arguments by name.

        A word's value is text for a parameter that takes text only; for any other it is JSON, and text if it is not valid JSON.

        Args:
            parameters_schema: The JSON Schema of the tool's parameters; None for an unknown tool.
        """
        if self.typed:
            return self.values
        properties = json.loads(parameters_schema or "{}").get("properties", {})
        return {
            name: text if properties.get(name, {}).get("type") == "string" else _value(text)
            for name, text in self.values.items()
        }


def read_arguments(words: Sequence[str]) -> Arguments:
    """Read the words after a tool's name.

    Raises:
        ValueError: They are neither a JSON object nor ``KEY=VALUE`` words; the text says why.
    """
    if not words:
        return Arguments({}, typed=True)
    if len(words) == 1 and not _PAIR.fullmatch(words[0]):
        try:
            values = json.loads(words[0])
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"the arguments are not JSON, nor KEY=VALUE: {exc}") from None
        if not isinstance(values, dict):
            raise ValueError("the arguments must be a JSON object, or words KEY=VALUE")
        return Arguments(values, typed=True)
    texts: dict[str, Any] = {}
    for word in words:
        pair = _PAIR.fullmatch(word)
        if pair is None:
            raise ValueError(f"expected one JSON object, or words KEY=VALUE, got {word!r}")
        if pair[1] in texts:
            raise ValueError(f"{pair[1]} is given twice")
        texts[pair[1]] = pair[2]
    return Arguments(texts, typed=False)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
