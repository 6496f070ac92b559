"""``snakepit call``: make one call, in a new worker or through a bridge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from .arguments import read_arguments
from .common import FAILED, UNUSABLE, describe, fail, last_words, run, start_failure, to_json


def call(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER TOOL [PARAMS]...",
            help="module or module:Class, the tool's name, and its arguments: a JSON object, or words KEY=VALUE. "
            "No ADAPTER with --address.",
        ),
    ],
    address: Annotated[
        str | None,
        typer.Option(help="The address of a bridge, as `snakepit serve` prints it: unix:PATH or tcp:HOST:PORT."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="The file with the bridge's token; by default the token is $SNAKEPIT_TOKEN.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Use TLS, and trust this certificate authority (PEM).")] = None,
    pool: Annotated[str, typer.Option(help="The name of a pool behind the bridge.")] = "",
    timeout: Annotated[float | None, typer.Option(help="Time limit of the call in seconds.", min=0.001)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON, also for an error.")] = False,
) -> None:
    """Run one tool once and print its result as JSON; for a streaming tool, one line per chunk."""

    def refuse(message: str) -> NoReturn:
        if not as_json:
            fail(message, UNUSABLE)
        print(to_json({"error": {"code": "invalid_parameter", "message": message, "retryable": False}}), flush=True)
        raise typer.Exit(UNUSABLE)

    named = 1 if address else 2
    if len(words) < named:
        refuse(f"expected {'TOOL' if address else 'ADAPTER TOOL'} [PARAMS], got {' '.join(words)}")
    tool = words[named - 1]
    try:
        given = read_arguments(words[named:])
    except ValueError as exc:
        refuse(str(exc))

    async def main() -> int:
        import snakepit_trio as sp

        source: Any
        try:
            if address is None:
                source = sp.open_pool(words[0], size=1)
            else:
                source = sp.connect(
                    address, token_file=token_file, pool=pool, tls=None if ca is None else str(ca), connect_timeout=5
                )
            async with source as client:
                specs = client.tools() if address is None else await client.tools()
                await _call(client, {spec.name: spec for spec in specs}.get(tool))
        except sp.SnakepitError as exc:
            unusable = isinstance(exc, sp.ConfigError | sp.WorkerStartupError)
            code = UNUSABLE if unusable else FAILED
            if as_json:
                print(to_json({"error": _error(exc)}), flush=True)
                return code
            fail(start_failure(exc) if unusable else describe(exc, wrote=address is not None), code)
        return 0

    async def _call(client: Any, spec: Any) -> None:
        limit = {} if timeout is None else {"timeout": timeout}
        arguments = given.for_tool(None if spec is None else spec.parameters_schema)
        if spec is not None and spec.streaming:
            async with client.stream(tool, arguments, **limit) as chunks:
                async for chunk in chunks:
                    print(to_json(chunk), flush=True)
        else:
            result = await client.execute(tool, arguments, **limit)
            print(to_json(result, indent=None if as_json else 2), flush=True)

    run(main)


def _error(exc: Any) -> dict[str, Any]:
    found = {"code": exc.code, "message": exc.message, "retryable": exc.retryable}
    if getattr(exc, "remote_type", ""):
        found["type"] = exc.remote_type
    if getattr(exc, "remote_traceback", ""):
        found["traceback"] = exc.remote_traceback
    if last := last_words(exc):
        found["stderr"] = last
    return found
