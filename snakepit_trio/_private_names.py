"""A list of all private or undocumented names of dependencies in use, and checks whether the installed releases have them.

A module that uses such names checks for them at import, after its dependency: with :func:`missing` if it has a fallback,
or else with :func:`require`. This module does not import dependencies on its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import CodeType
from typing import Any, NamedTuple

from .errors import IncompatibleDependency

__all__ = ["USES", "Use", "missing", "release", "require"]

#: The name of the standard library in :attr:`Use.distribution`.
PYTHON = "Python"


class Use(NamedTuple):
    """The private names of one dependency that one module uses.

    Attributes:
        distribution: The distribution whose release determines the names.
        where: The module that uses them.
        names: The names by owner, as ``module`` or ``module:Class``. An instance attribute counts if the class's
            ``__init__`` sets it.
        fallback: The behaviour without the names; empty if there is none, and the release can't be used.
    """

    distribution: str
    where: str
    names: Mapping[str, tuple[str, ...]]
    fallback: str = ""


_PLAIN = "all frames go through h2 itself"

#: All uses, by the key that a module asks for.
USES: Mapping[str, Use] = {
    "h2": Use(
        "h2",
        "snakepit_trio.wire.http2.lean_h2",
        {
            "h2.connection": ("_decode_headers",),
            "h2.connection:H2Connection": (
                "_begin_new_stream", "_data_to_send", "_inbound_flow_control_window_manager", "_terminate_connection",
            ),
            "h2.stream:H2Stream": ("_expected_content_length", "_inbound_window_manager"),
            "h2.windows:WindowManager": ("_bytes_processed",),
            "h2.frame_buffer:FrameBuffer": ("_data", "_headers_buffer", "_preamble_len"),
        },
        fallback=_PLAIN,
    ),
    "hpack": Use(
        "hpack",
        "snakepit_trio.wire.http2.lean_hpack",
        {"hpack.hpack:Decoder": ("_decode_literal_no_index",), "hpack.table:HeaderTable": ("dynamic_entries", "resized")},
        fallback=_PLAIN,
    ),
    "grpclib": Use(
        "grpclib",
        "snakepit_trio.wire.http2.engine",
        {
            "grpclib.protocol:Connection": ("_connection", "_transport"),
            "grpclib.protocol:Stream": ("_h2_connection", "_transport", "__terminated__"),
            "grpclib.protocol:Buffer": ("_eof", "_unacked"),
            "grpclib.config:Configuration": ("__for_client__",),
        },
    ),
    "grpclib.server": Use(
        "grpclib",
        "snakepit_trio.wire.http2.grpc_server",
        {"grpclib.server:Server": ("_handlers", "_protocol_factory"), "grpclib.server:Stream": ("_stream",)},
    ),
    "betterproto2": Use(
        "betterproto2", "snakepit_trio.wire.messages", {"betterproto2:Message": ("_betterproto",)},
    ),
    "asyncio": Use(
        PYTHON,
        "snakepit_trio.worker.shared_loop",
        {"asyncio": ("_get_running_loop", "_set_running_loop"), "asyncio:SelectorEventLoop": ("_run_once",)},
    ),
    "asyncio.tasks": Use(
        PYTHON,
        "snakepit_trio.worker.shared_loop",
        {"asyncio.tasks": ("_swap_current_task",)},
        fallback="before Python 3.14 a loop has its own current task, and none is put aside",
    ),
    "fork": Use(
        PYTHON,
        "snakepit_trio.launch.template",
        {"atexit": ("_clear", "_run_exitfuncs"), "threading": ("_shutdown",)},
    ),
    "anyio": Use(
        "anyio",
        "snakepit_trio.launch.template",
        {"anyio._backends._asyncio": (), "anyio._backends._trio": ()},
        fallback="a worker imports its event loop by itself, later",
    ),
    "subprocess": Use(
        PYTHON, "snakepit_trio.launch.interpreter", {"subprocess": ("_args_from_interpreter_flags",)},
    ),
    "trio": Use("trio", "snakepit_trio.worker.tasks", {"trio:Nursery": ("_nested_child_finished",)}),
    "typing": Use(
        PYTHON,
        "snakepit_trio.pool.calls.proxy",
        {"typing:Protocol": ("_is_protocol",)},
        fallback="a Protocol declares no tools",
    ),
    "numpy": Use(
        "numpy",
        "snakepit_trio.launch.reseeding",
        {"numpy.random:RandomState": ("_bit_generator",)},
        fallback="a legacy generator keeps the seed that its template has given it",
    ),
    "uvicorn": Use("uvicorn", "snakepit_trio.bridge.mcp_http", {"uvicorn:Server": ("capture_signals",)}),
}  # fmt: skip


def missing(use: str) -> list[str]:
    """Return the names that the installed release lacks, with their owners."""
    found = []
    for place, names in USES[use].names.items():
        module, _, kind = place.partition(":")
        try:
            owner: Any = importlib.import_module(module)
            owner = getattr(owner, kind) if kind else owner
        except (ImportError, AttributeError):
            found.append(place)
            continue
        found += [f"{place.replace(':', '.')}.{name}" for name in names if not _has(owner, name)]
    return found


def require(use: str) -> None:
    """Check that all names exist.

    Raises:
        IncompatibleDependency: Some do not; the error names the release and the names.
    """
    lacking = missing(use)
    if lacking:
        distribution, version = release(use)
        raise IncompatibleDependency(
            f"{distribution} {version} has no {', '.join(lacking)}, which {USES[use].where} needs; use another release of "
            f"{distribution}, or of snakepit_trio",
            details={"dependency": distribution, "version": version, "missing": lacking},
        )


def release(use: str) -> tuple[str, str]:
    """Return the dependency's name and its installed version."""
    distribution = USES[use].distribution
    if distribution == PYTHON:
        return distribution, sys.version.partition(" ")[0]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return distribution, version(distribution)
    except PackageNotFoundError:
        return distribution, "(of unknown version)"


def _has(owner: Any, name: str) -> bool:
    if not isinstance(owner, type):
        return hasattr(owner, name)
    for kind in owner.__mro__:
        if name in vars(kind):
            return True
        code = getattr(vars(kind).get("__init__"), "__code__", None)
        if isinstance(code, CodeType) and name in code.co_names:
            return True
    return False
