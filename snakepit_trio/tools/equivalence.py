"""Whether two JSON Schemas ask for the same.

JSON Schema: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["equivalent"]

#: What tells about values and constrains none.
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
)
#: Their values are objects whose keys are names.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
#: The order of their values means nothing; made from a set, it is another in each process.
_UNORDERED = frozenset({"required", "enum", "type", "anyOf", "oneOf", "allOf"})
#: Their values are values, and no schemas.
_LITERAL = frozenset({"const", "enum"})
#: Of schemas with more characters or levels only the same text is the same: each level is looked at once more for each above it.
_LONGEST, _LEVELS = 256 * 1024, 64


def equivalent(one: str, other: str) -> bool:
    """Whether two schemas, as JSON, constrain values in the same way, as far as can be told without a proof."""
    if one == other:
        return True
    if max(len(one), len(other)) > _LONGEST:
        return False
    try:
        found: bool = _bare(json.loads(one)) == _bare(json.loads(other))
    except (ValueError, TypeError, RecursionError):
        return False
    return found


def _bare(schema: Any, depth: int = 0) -> Any:
    """A schema without what constrains nothing, and with an order where there is none."""
    if depth > _LEVELS:
        raise RecursionError
    if not isinstance(schema, dict):
        return [_bare(item, depth + 1) for item in schema] if isinstance(schema, list) else schema
    bare: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _ANNOTATIONS:
            continue
        if key in _NAMED and isinstance(value, dict):
            value = {name: _bare(part, depth + 1) for name, part in value.items()}
        elif key not in _LITERAL:
            value = _bare(value, depth + 1)
        if key in _UNORDERED and isinstance(value, list):
            value = sorted(value, key=lambda item: json.dumps(item, sort_keys=True))
        bare[key] = value
    return bare
