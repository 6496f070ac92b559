"""``snakepit serve``: run a runtime with a bridge from a configuration file until a signal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import UNUSABLE, fail, to_json

if TYPE_CHECKING:
    from snakepit_trio.runtime import Runtime

__all__ = ["serve"]


def serve(
    config: Annotated[
        Path | None, typer.Option(help="A TOML file; by default snakepit.toml or pyproject.toml in this directory.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="unix:PATH or tcp:HOST:PORT; overrides the file.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="The file to read the token from, or to write it to (0600); by default in the state directory."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON once the server is ready.")] = False,
) -> None:
    """Serve a runtime's pools to gRPC clients, until SIGINT or SIGTERM.

    The command prints its address and the file that holds the token; the token itself is never printed. A signal closes
    the runtime in order: running calls have stop_grace seconds of their pool to end. The exit code is 130 after SIGINT,
    143 after SIGTERM, 2 if the server can't start.
    """
    import attrs

    from snakepit_trio.config import BridgeConfig, RuntimeConfig
    from snakepit_trio.errors import ConfigError
    from snakepit_trio.script import run

    try:
        loaded = RuntimeConfig.load(config)
        bridge = loaded.bridge or BridgeConfig()
        changes: dict[str, Any] = {}
        if address is not None:
            changes["address"] = address
        if token_file is not None:
            changes["token_file"] = str(token_file)
        loaded = attrs.evolve(loaded, bridge=attrs.evolve(bridge, **changes))
    except ConfigError as exc:
        fail(exc.message, UNUSABLE)

    async def main(runtime: Runtime) -> None:
        import anyio

        assert runtime.bridge is not None
        with _token_place(runtime) as place:
            pools = {name: len(pool.workers()) for name, pool in runtime.pools.items()}
            if as_json:
                told = {"address": runtime.bridge.address, "token_file": place, "pools": pools, "pid": os.getpid()}
                print(to_json({**told, "run_id": runtime.run_id}), flush=True)
            else:
                print(f"serving {', '.join(pools)} at {runtime.bridge.address}", flush=True)
                print(f"the token is in {place}" if place else "the token is the configuration's", flush=True)
            await anyio.sleep_forever()

    sys.exit(run(main, loaded))


@contextmanager
def _token_place(runtime: Runtime) -> Iterator[str | None]:
    """Yield the file that holds the token; a file made here is removed with the run. None: the token is in the configuration."""
    from snakepit_trio.errors import ConfigError
    from snakepit_trio.supervision.state_directory import private_directory, state_directory

    bridge = runtime.config.bridge
    assert bridge is not None and runtime.bridge is not None
    if bridge.token_file is not None or bridge.token is not None:
        yield bridge.token_file
        return
    path = state_directory(runtime.config.state_dir) / f"bridge-{runtime.run_id}.token"
    try:
        path = private_directory(path.parent) / path.name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"the token can't be written to {path}: {exc.strerror}; choose another file with --token-file",
            details={"key": "token_file", "expected": "a path that can be written"},
        ) from None
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(runtime.bridge.token + "\n")
        yield str(path)
    finally:
        path.unlink(missing_ok=True)
