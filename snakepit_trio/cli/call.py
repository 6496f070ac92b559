"""``snakepit call``: one call in a worker of its own."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .common import FAILED, UNUSABLE, describe, fail, run, to_json


def call(
    adapter: Annotated[str, typer.Argument(help="module or module:Class")],
    tool: Annotated[str, typer.Argument(help="The tool's name.")],
    params: Annotated[str, typer.Argument(help="Its arguments, as a JSON object.")] = "{}",
    timeout: Annotated[float | None, typer.Option(help="Seconds for the call.", min=0.001)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON, errors too.")] = False,
) -> None:
    """Run one tool once and print its result as JSON; a streaming tool prints a line for each chunk."""
    try:
        arguments = json.loads(params)
    except ValueError as exc:
        fail(f"the arguments are not JSON: {exc}", UNUSABLE)
    if not isinstance(arguments, dict):
        fail("the arguments must be a JSON object", UNUSABLE)

    async def main() -> int:
        import snakepit_trio as sp

        async with sp.open_pool(adapter, size=1) as pool:
            spec = {spec.name: spec for spec in pool.tools()}.get(tool)
            try:
                if spec is not None and spec.streaming:
                    async with pool.stream(tool, arguments, timeout=timeout) as chunks:
                        async for chunk in chunks:
                            print(to_json(chunk), flush=True)
                else:
                    result = await pool.execute(tool, arguments, timeout=timeout)
                    print(to_json(result, indent=None if as_json else 2), flush=True)
            except sp.SnakepitError as exc:
                if as_json:
                    print(to_json({"error": _error(exc)}), flush=True)
                    return FAILED
                fail(describe(exc), FAILED)
        return 0

    run(main)


def _error(exc: Any) -> dict[str, Any]:
    found = {"code": exc.code, "message": exc.message, "retryable": exc.retryable}
    if getattr(exc, "remote_type", ""):
        found["type"] = exc.remote_type
    return found
