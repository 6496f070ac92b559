"""An MCP server for a pool's tools, on the official SDK.

A call of an agent is a request of the pool: it runs in a worker, ends with its scope, and can be killed. Everything
that the protocol can express is mapped: the tools' schemas, progress, cancellation, and errors that the model can read
and react to.

- The chunks of a streaming tool are progress notifications; its result is the list of all chunks.
- ``structuredContent`` must be an object, so any other result, including that list, becomes ``{"result": ...}``.

Specification: https://modelcontextprotocol.io/specification
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from snakepit_trio._exceptions import clean
from snakepit_trio.errors import InvalidParameter, InvalidPayload, SnakepitError, ToolError
from snakepit_trio.observe.printable import json_bytes
from snakepit_trio.pool.calls.submission import tool_not_found

if TYPE_CHECKING:
    from snakepit_trio.pool.pool import Pool
    from snakepit_trio.wire.handshake_messages import ToolSpec

__all__ = ["make_server"]

#: The characters of a chunk in its progress notification.
_SHOWN = 1000
#: The largest size of an error's text, in bytes.
_LONGEST = 8 * 1024
#: The largest size of all chunks of a stream, in bytes of JSON.
_MOST = 4 * 1024 * 1024


def make_server(pool: Pool, *, name: str, version: str, tools: Sequence[str] = ()) -> Server[Any]:
    """Create an MCP server for an open pool.

    Args:
        pool: The pool; its time limits apply to the calls.
        name, version: The server's name and version.
        tools: The offered tools; all if empty.

    Raises:
        ToolNotFound: The pool has no such tool.
    """
    known = {spec.name: spec for spec in pool.tools()}
    for tool in tools:
        if tool not in known:
            raise tool_not_found(tool, known, pool.name)
    offered = {tool: known[tool] for tool in tools or known}
    listed = [_describe(spec) for spec in offered.values()]

    async def list_tools(
        ctx: ServerRequestContext[Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=listed)

    async def call_tool(ctx: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        spec = offered.get(params.name)
        if spec is None:
            raise MCPError(types.INVALID_PARAMS, f"there is no tool {params.name!r}")
        try:
            if spec.streaming:
                value: Any = await _collect(pool, spec.name, params.arguments, ctx)
            else:
                value = _as_json(await pool.execute(spec.name, params.arguments))
        except SnakepitError as exc:
            return types.CallToolResult(content=[types.TextContent(type="text", text=_explain(exc))], is_error=True)
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=value if isinstance(value, str) else _text(value))],
            structured_content=value if _is_object(spec) else {"result": value},
        )

    return Server(name, version=version, on_list_tools=list_tools, on_call_tool=call_tool)


def _as_json(value: Any) -> Any:
    """Return a result as JSON types; a value without a JSON type becomes text or a list.

    Raises:
        InvalidPayload: The result contains nan or infinity, for which text would violate the tool's schema.
    """
    return json.loads(json_bytes(value, not_finite=_refuse))


def _refuse(number: float) -> NoReturn:
    raise InvalidPayload(f"result: JSON has no number for {number}", details={"path": "result"})


async def _collect(
    pool: Pool, tool: str, arguments: Mapping[str, Any] | None, ctx: ServerRequestContext[Any]
) -> list[Any]:
    found: list[Any] = []
    size = 0
    async with pool.stream(tool, arguments) as chunks:
        async for chunk in chunks:
            plain = _as_json(chunk)
            text = _text(plain)
            size += len(text)
            if size > _MOST:
                raise InvalidParameter(
                    f"the stream gives more than {_MOST} bytes, which is more than an agent gets in one result",
                    details={"path": "params", "tool": tool, "limit": _MOST},
                )
            found.append(plain)
            await ctx.session.report_progress(len(found), None, text[:_SHOWN])
    return found


def _describe(spec: ToolSpec) -> types.Tool:
    return types.Tool(
        name=spec.name,
        description=spec.description or None,
        input_schema={"type": "object", **_schema(spec.parameters_schema)},
        output_schema=_output_schema(spec),
        annotations=types.ToolAnnotations(idempotent_hint=True) if spec.idempotent else None,
    )


def _output_schema(spec: ToolSpec) -> dict[str, Any]:
    schema = _schema(spec.result_schema)
    if _is_object(spec):
        return schema
    # References begin at the root, so the definitions stay there.
    definitions = {key: schema.pop(key) for key in ("$defs",) if key in schema}
    inner = {"type": "array", "items": schema} if spec.streaming else schema
    return {"type": "object", "properties": {"result": inner}, "required": ["result"], **definitions}


def _is_object(spec: ToolSpec) -> bool:
    return not spec.streaming and _schema(spec.result_schema).get("type") == "object"


def _schema(text: str) -> dict[str, Any]:
    schema = json.loads(text or "{}")
    return schema if isinstance(schema, dict) else {}


def _explain(error: SnakepitError) -> str:
    """Return the text of an error for the model: the fault, without its place in the code."""
    # Text without a UTF-8 form would end the SDK's connection.
    text = clean(error.message, _LONGEST)
    return text if isinstance(error, ToolError) else f"{error.code}: {text}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
