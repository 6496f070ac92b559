"""Compare two JSON Schemas for equivalence.

JSON Schema: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["equivalent"]

#: Keywords that describe values without constraining them.
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
)
#: Keywords whose values are objects with names as keys.
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
#: Keywords whose values have no order; a list made from a set differs in order between processes.
_UNORDERED = frozenset({"required", "enum", "type", "anyOf", "oneOf", "allOf"})
#: Keywords whose values are plain values rather than schemas.
_LITERAL = frozenset({"const", "enum"})
#: Larger or deeper schemas are compared as text, because each level is visited once more for each level above it.
_LONGEST, _LEVELS = 256 * 1024, 64


def equivalent(one: str, other: str) -> bool:
    """Return whether two schemas, as JSON text, constrain values in the same way, as far as that is decidable without a
    proof.
    """
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
    """Return a schema without annotations, and with unordered lists sorted."""
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
