"""``snakepit mcp``: offer an adapter's tools to agents over the Model Context Protocol."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .common import UNUSABLE, fail, run

#: The environment variable that holds a fixed token for HTTP.
TOKEN = "SNAKEPIT_MCP_TOKEN"


def mcp(
    adapter: Annotated[str, typer.Argument(help="module or module:Class")],
    tools: Annotated[str, typer.Option(help="Offer only these tools, separated by commas.")] = "",
    size: Annotated[int | None, typer.Option(help="The number of workers; by default one per core.", min=1)] = None,
    timeout: Annotated[float | None, typer.Option(help="Time limit of one call in seconds.", min=0.001)] = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Serve streamable HTTP on a loopback address instead of standard input and output.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help=f"HTTP: the file with the token; by default ${TOKEN}, or else a new token, printed on stderr."
        ),
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="HTTP: the host name of a proxy in front of the server; may be repeated.")
    ] = None,
) -> None:
    """Offer an adapter's tools to agents (MCP); each call runs in a worker process. Needs the extra "mcp"."""
    if importlib.util.find_spec("mcp") is None:
        fail("the extra is missing: pip install 'snakepit-trio[mcp]'", UNUSABLE)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Output of tools is logged, for the agent host's log.
    logging.getLogger("snakepit_trio.worker").setLevel(logging.INFO)
    options: dict[str, Any] = {}
    if size is not None:
        options["size"] = size
    if timeout is not None:
        options |= {"timeout": timeout, "stream_timeout": timeout}
    chosen = [name.strip() for name in tools.split(",") if name.strip()]
    if http is None:
        run(lambda: _stdio(adapter, chosen, options))
    # The import is slow, so it happens before there is an event loop: asyncio's loop would delay a Ctrl-C until its end.
    importlib.import_module("snakepit_trio.bridge.mcp_http")
    importlib.import_module("snakepit_trio.bridge.mcp")
    token = _token(token_file)
    run(lambda: _http(adapter, chosen, options, http, token, host_name or []), backend="asyncio")


async def _stdio(adapter: str, tools: list[str], options: dict[str, Any]) -> int:
    import anyio
    from mcp.server.stdio import stdio_server

    import snakepit_trio as sp
    from snakepit_trio.bridge.mcp import make_server
    from snakepit_trio.bridge.mcp_stdio import claim

    with claim() as files:
        async with sp.open_pool(adapter, **options) as pool:
            server = make_server(pool, name=f"snakepit {adapter}", version=sp.__version__, tools=tools)
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(_stop_on_sigterm, nursery.cancel_scope)
                async with cast("Any", stdio_server)(*files) as (incoming, outgoing):
                    await server.run(incoming, outgoing, server.create_initialization_options())
                nursery.cancel_scope.cancel()
    return 0


async def _stop_on_sigterm(scope: Any) -> None:
    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def _http(
    adapter: str, tools: list[str], options: dict[str, Any], address: str, token: str, names: list[str]
) -> int:
    import snakepit_trio as sp
    from snakepit_trio.bridge.mcp import make_server
    from snakepit_trio.bridge.mcp_http import PATH, listen, serve_http

    with listen(address) as sock:
        async with sp.open_pool(adapter, **options) as pool:
            server = make_server(pool, name=f"snakepit {adapter}", version=sp.__version__, tools=tools)
            host, port = sock.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"snakepit: serving on http://{shown}:{port}{PATH}", file=sys.stderr, flush=True)
            await serve_http(server, sock, token=token, names=names)
    return 0


def _token(path: Path | None) -> str:
    if path is not None:
        try:
            token = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            fail(f"can't read the token from {path}: {exc}", UNUSABLE)
        if not token:
            fail(f"{path} holds no token", UNUSABLE)
        return token
    token = os.environ.pop(TOKEN, "")
    if not token:
        token = secrets.token_urlsafe(32)
        print(f"snakepit: clients send: authorization: Bearer {token}", file=sys.stderr, flush=True)
    return token
