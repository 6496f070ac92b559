"""``snakepit tools``: list an adapter's tools."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .common import run, terminal, to_json


def tools(
    adapter: Annotated[str, typer.Argument(help="module or module:Class")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with the schemas of parameters and results.")
    ] = False,
) -> None:
    """List an adapter's tools, as a worker sees them."""

    async def main() -> int:
        import snakepit_trio as sp

        async with sp.open_pool(adapter, size=1) as pool:
            found = [_plain(spec) for spec in pool.tools()]
        if as_json:
            print(to_json(found, indent=2))
            return 0
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("tool", "parameters", "gives", "description"):
            table.add_column(title, overflow="fold")
        for spec in found:
            gives = type_words(spec["result"]) if not spec["streaming"] else f"stream of {type_words(spec['result'])}"
            table.add_row(spec["name"], _signature(spec["parameters"]), gives, spec["description"])
        terminal().print(table)
        return 0

    run(main)


def _plain(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "description": spec.description,
        "streaming": spec.streaming,
        "idempotent": spec.idempotent,
        "critical": spec.critical,
        "metadata": dict(spec.metadata),
        "parameters": json.loads(spec.parameters_schema or "{}"),
        "result": json.loads(spec.result_schema or "{}"),
    }


def _signature(schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    return ", ".join(
        f"{name}{'' if name in required else '?'}: {type_words(kind)}"
        for name, kind in schema.get("properties", {}).items()
    )


def type_words(schema: dict[str, Any]) -> str:
    """Return a JSON Schema's type in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " | ".join(map(type_words, schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items")
        return f"array of {type_words(items)}" if isinstance(items, dict) and items else "array"
    return str(kind) if kind else "any"
