"""``snakepit map``: run one tool over many inputs, each call isolated in a worker."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import FAILED, UNUSABLE, fail, run, to_json
from .progress import ProgressBar
from .tools import type_words

#: The fields of a file that a template may use.
_FIELDS = ("path", "name", "stem", "suffix", "text")


def map_command(
    adapter: Annotated[str, typer.Argument(help="module or module:Class")],
    tool: Annotated[str, typer.Argument(help="The tool's name.")],
    inputs: Annotated[
        list[str], typer.Argument(help="Files or directories; '-' reads JSON objects from stdin, one per line.")
    ],
    param: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=TEMPLATE: a parameter for each file; {path}, {name}, {stem}, {suffix} and {text} are the file's. "
            "The result is text if the tool's schema takes text, else JSON: --param seconds=0.5."
        ),
    ] = None,
    glob: Annotated[str, typer.Option(help="The pattern of file names in directories, recursively.")] = "*",
    size: Annotated[int | None, typer.Option(help="The number of workers; by default one per core.", min=1)] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Time limit of one input in seconds, from its start in a worker.", min=0.001)
    ] = None,
    retry: Annotated[bool, typer.Option(help="Run an input again if its worker died.")] = False,
    ordered: Annotated[bool, typer.Option(help="Print results in the order of the inputs.")] = False,
    progress: Annotated[
        bool | None, typer.Option(help="Show a progress bar on stderr; on by default if stderr is a terminal.")
    ] = None,
    _as_json: Annotated[bool, typer.Option("--json", help="No effect: the output is always lines of JSON.")] = False,
) -> None:
    """Run a tool over many inputs and print one line of JSON for each.

    A failed input, including a line that is not JSON, has its error in the output and stops no other input. The exit code
    is 0 if all inputs succeeded, 1 if any failed, 2 if nothing could start, 130 after Ctrl-C.
    """
    given = _templates(param or [])
    done = failed = 0
    known: int | None = None

    def on_interrupt() -> str:
        return (
            f"interrupted: {done} of {known if known is not None else 'the'} inputs were done, {failed} of them failed"
        )

    async def main() -> int:
        nonlocal done, failed, known
        import snakepit_trio as sp

        options: dict[str, Any] = {} if size is None else {"size": size}
        async with sp.open_pool(adapter, **options) as pool:
            specs = {spec.name: spec for spec in pool.tools()}
            if tool not in specs:
                fail(f"{adapter} has no tool {tool!r}; it has {', '.join(specs)}", UNUSABLE)
            if specs[tool].streaming:
                fail(f"{tool!r} is a streaming tool; map needs a tool that returns one result", UNUSABLE)
            names: dict[int, str] = {}
            # The fault of each line that is not a valid input; it fails like any other refused input.
            wrong: dict[int, str] = {}

            async def from_lines() -> AsyncIterator[Any]:
                index = 0
                async for number, line in _lines():
                    if not line.strip():
                        continue
                    names[index] = f"line {number}"
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError) as exc:
                        value, wrong[index] = None, f"the line is not JSON: {exc}"
                    else:
                        if not isinstance(value, dict):
                            wrong[index] = "the line is not a JSON object"
                    yield value
                    index += 1

            def from_files(files: list[Path]) -> Iterator[Any]:
                for index, (name, texts) in enumerate(_from_files(files, templates)):
                    names[index] = name
                    try:
                        value = {name: _read(name, text, schema) for name, text in texts.items()}
                    except ValueError as exc:
                        value, wrong[index] = None, str(exc)
                    yield value

            if inputs == ["-"]:
                params: Any = from_lines()
            else:
                schema = json.loads(specs[tool].parameters_schema or "{}")
                templates = given or _only_parameter(schema, tool)
                _check_constants(templates, schema)
                files = list(_files(inputs, glob))
                known = len(files)
                params = from_files(files)
            with ProgressBar(progress, known, title="running") as bar:
                async with pool.map(
                    tool,
                    params,
                    ordered=ordered,
                    return_errors=True,
                    timeout=timeout,
                    idempotent=True if retry else None,
                ) as results:
                    async for result in results:
                        line: dict[str, Any] = {"index": results.index, "input": names.pop(results.index)}
                        done += 1
                        if isinstance(result, sp.SnakepitError):
                            failed += 1
                            message = wrong.pop(results.index, result.message)
                            line["error"] = {"code": result.code, "message": message}
                            if isinstance(result, sp.ToolError):
                                line["error"]["type"] = result.remote_type
                                if result.remote_traceback:
                                    line["error"]["traceback"] = result.remote_traceback
                        else:
                            line["result"] = result
                        bar.print(to_json(line))
                        bar.update(done, f"running, {failed} failed" if failed else None)
        if failed:
            print(f"snakepit: {failed} of {done} inputs failed", file=sys.stderr)
        return FAILED if failed else 0

    run(main, on_interrupt)


def _templates(given: list[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, template = item.partition("=")
        if not equals or not name:
            fail(f"--param {item!r}: expected NAME=TEMPLATE", UNUSABLE)
        found[name] = template
    return found


def _only_parameter(schema: dict[str, Any], tool: str) -> dict[str, str]:
    required = schema.get("required", []) or list(schema.get("properties", {}))
    if len(required) != 1:
        fail(
            f"{tool!r} takes {', '.join(required) or 'nothing'}: say with --param NAME={{path}} what the file is",
            UNUSABLE,
        )
    return {required[0]: "{path}"}


def _check_constants(templates: dict[str, str], schema: dict[str, Any]) -> None:
    """Refuse a parameter that is the same for all files and invalid for all of them."""
    for name, template in templates.items():
        if not any(f"{{{field}}}" in template for field in _FIELDS):
            try:
                _read(name, template, schema)
            except ValueError as exc:
                fail(f"--param {name}={template}: {exc}", UNUSABLE)


def _read(name: str, text: str, schema: dict[str, Any]) -> Any:
    """Return a parameter's value: the text itself if the tool's schema takes text or says nothing, else its value as JSON.

    Raises:
        ValueError: The text is not JSON.
    """
    kind = schema.get("properties", {}).get(name, {})
    if _takes_text(kind, schema.get("$defs", {})):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = text if len(text) <= 100 else text[:97] + "..."
        raise ValueError(f"{name}: expected {type_words(kind)} as JSON, got {shown!r}") from None


def _takes_text(kind: dict[str, Any], definitions: dict[str, Any]) -> bool:
    if "$ref" in kind:
        kind = definitions.get(kind["$ref"].rpartition("/")[2], {})
    if "anyOf" in kind:
        return any(_takes_text(part, definitions) for part in kind["anyOf"])
    if "enum" in kind:
        return any(isinstance(value, str) for value in kind["enum"])
    return "string" in kind.get("type", "string")


def _files(inputs: list[str], glob: str) -> Iterator[Path]:
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            yield from sorted(found for found in path.rglob(glob) if found.is_file())
        elif path.exists():
            yield path
        else:
            fail(f"no such file: {name}", UNUSABLE)


def _from_files(files: list[Path], templates: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    wants_text = any("{text}" in template for template in templates.values())
    for path in files:
        fields = {"path": str(path), "name": path.name, "stem": path.stem, "suffix": path.suffix}
        if wants_text:
            fields["text"] = path.read_text(errors="replace")
        values = {}
        for name, template in templates.items():
            text = template
            for field, value in fields.items():
                text = text.replace(f"{{{field}}}", value) if field != "text" else text
            values[name] = text.replace("{text}", fields.get("text", ""))
        yield str(path), values


async def _lines() -> AsyncIterator[tuple[int, bytes]]:
    """Yield the lines of standard input with their numbers. Waiting blocks no other task, and can be cancelled."""
    import anyio

    if sys.stdin is None:
        fail("standard input is closed", UNUSABLE)
    descriptor, number, rest = sys.stdin.fileno(), 0, b""
    while True:
        try:
            await anyio.wait_readable(descriptor)
        except PermissionError:
            # Standard input is a file: the kernel has nothing to wait for, and reading does not block.
            await anyio.lowlevel.checkpoint()
        got = os.read(descriptor, 65536)
        *complete, rest = (rest + got).split(b"\n")
        for line in complete:
            number += 1
            yield number, line
        if not got:
            if rest:
                yield number + 1, rest
            return
