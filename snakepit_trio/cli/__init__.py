"""The ``snakepit`` command. Each command is one module; a command imports the modules of its work only when it runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

__all__ = ["build", "main"]


def build() -> typer.Typer:
    """Return the command line application."""
    import typer

    from . import bench, call, cleanup, demo, diagnose, doctor, map, mcp, new, serve, status, tools, top, worker
    from .common import root

    app = typer.Typer(
        name="snakepit",
        help="Run tools in pools of worker processes.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(root)
    app.command("demo")(demo.demo)
    app.command("map")(map.map_command)
    app.command("call")(call.call)
    app.command("tools")(tools.tools)
    app.command("serve")(serve.serve)
    app.command("status")(status.status)
    app.command("top")(top.top)
    app.command("worker")(worker.worker)
    app.command("resize")(worker.resize)
    app.command("doctor")(doctor.doctor)
    app.command("diagnose")(diagnose.diagnose)
    app.command("new")(new.new)
    app.command("mcp")(mcp.mcp)
    app.command("bench")(bench.bench)
    app.command("cleanup")(cleanup.cleanup)
    return app


def main() -> None:
    """Run the command line; the entry point of the console script."""
    # A console script does not put the current directory on the path, and adapters are looked up there first.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        build()(prog_name="snakepit")
    except KeyboardInterrupt:
        # A Ctrl-C outside any command's own handling.
        sys.exit(130)
    except OSError as exc:
        # Usually a full disk behind standard output. Flushing the rest at exit would fail again, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"snakepit: {exc}", file=sys.stderr)
        sys.exit(1)
