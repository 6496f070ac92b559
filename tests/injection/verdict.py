"""What is said of a try, what of that is in order, and the functions that may do more harm, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tests.injection.tracing import Target

__all__ = ["CALLED", "EXCEPTED", "GOOD", "MAY_KEEP_SILENT", "is_good", "may_end_it", "outcome"]

#: What may become of a try; all else is a fault.
GOOD = frozenset(
    {
        "survived", "internal error for its caller", "worker replaced", "connection closed",
        "raised by the function that was called", "not reached", "call failed",
        "worker not replaced at its owner's request",
    }
)  # fmt: skip

#: Functions that may do more harm, or tell nobody, by file and name: what may become of a try, and why.
EXCEPTED: Mapping[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("_bulkhead.py", "InternalErrors._run"): (
        ("runtime ended", "hang", "calls fail after it"),
        "It is the boundary: what is raised before it has begun, nothing stops. In a client that ends the connection for good.",
    ),
    ("_bulkhead.py", "InternalErrors._keep"): (("runtime ended",), "It is the boundary."),
    ("_bulkhead.py", "InternalErrors._serve"): (("runtime ended",), "It is the boundary."),
    ("_bulkhead.py", "InternalErrors.__init__"): (
        ("raw error for its caller",),
        "It is made before there is a boundary.",
    ),
    ("_bulkhead.py", "InternalErrors.block"): (("raw error for its caller",), "It makes the boundary."),
    ("_bulkhead.py", "_Block.__init__"): (("raw error for its caller",), "It makes the boundary."),
    ("_bulkhead.py", "block.<locals>.mark.<locals>.opened"): (("raw error for its caller",), "It makes the boundary."),
    ("_bulkhead.py", "operation.<locals>.plain"): (("raw error for its caller",), "It is the boundary."),
    ("_bulkhead.py", "operation.<locals>.behind"): (("raw error for its caller",), "It is the boundary."),
    ("_bulkhead.py", "_Block.__aexit__"): (
        ("another result", "seat lost", "runtime ended"),
        "It is the boundary: the interpreter calls it, and the block inside it is not left.",
    ),
    ("_interrupts.py", "_Managed.__aexit__"): (
        ("another result", "leak", "runtime ended"),
        "The interpreter calls it, and the block inside it is not left: asyncio leaves it in the midst of another task.",
    ),
    ("_home.py", "HomeNursery.__aexit__"): (
        ("another result", "leak", "runtime ended"),
        "The interpreter calls it, and the nursery inside it is not left.",
    ),
    ("launch/fork_server.py", "ForkServerLauncher.__aexit__"): (
        ("leak",),
        "It is what ends the templates at the end of a runtime; nobody else has them.",
    ),
    ("_user_code.py", "Raised.__exit__"): (
        ("swallowed",),
        "What it raises is a host tool's answer, which nobody may wait for.",
    ),
    ("_waiting.py", "_trio_waiter.<locals>.TrioWaiter._abort"): (
        ("runtime ended", "hang"),
        "Trio calls it in the middle of a cancellation; in a client, a thread waits for its event loop then.",
    ),
    ("wire/transports/trio_socket.py", "_Tick.before_io_wait"): (
        ("hang", "runtime ended"),
        "It is the boundary: Trio takes an instrument away that raises.",
    ),
    ("wire/http2/pipe.py", "FramePipe.unacked_size"): (
        ("swallowed",),
        "In a worker grpclib asks for it when an RPC is over, and keeps what its task raises to itself.",
    ),
    ("observe/http.py", "Metrics._client"): (
        ("leak",),
        "anyio gives it the connection, and nobody else has a hold of it: on asyncio it stays until the garbage collector comes.",
    ),
    ("_forks.py", "keep"): (("leak",), "Whoever keeps a descriptor has no other hold of it yet."),
    ("_forks.py", "above_streams"): (("leak",), "Whoever moves a descriptor has no other hold of it yet."),
    ("_forks.py", "close"): (
        ("leak",),
        "What could not be closed is not closed again: by then the number may be another's.",
    ),
    ("wire/http2/grpc_server.py", "PipeServer._protocol_factory"): (
        ("swallowed",),
        "asyncio calls it, and tells of what it raises in its debug mode only.",
    ),
    ("worker/failure.py", "run"): (
        ("call stranded",),
        "It is the boundary: what is raised before it has begun, the event loop logs.",
    ),
    ("worker/service.py", "WorkerService._behind.<locals>.rpc"): (
        ("swallowed",),
        "It is the boundary: grpclib answers with a status.",
    ),
}
#: Functions that answer for what is raised below them, and need tell nobody, and why.
MAY_KEEP_SILENT: Mapping[tuple[str, str], str] = {
    ("_exceptions.py", "attempt"): "It asks an exception about itself, which may raise anything: it is left out then.",
    ("worker/runners.py", "_run"): "What a call raises is its answer; a caller who has left hears none.",
    ("worker/loop_runner.py", "LoopRunner._run"): "The same.",
    ("bridge/client_tools.py", "_Registration._ask"): "The same: it is a host tool's call.",
    ("worker/toolbox.py", "_result_schema"): "What a result may be is left open when its type can't be described.",
}
#: Functions that do all that the one that somebody calls does: what they raise on entry, its caller gets as what that has raised.
CALLED: Mapping[tuple[str, str], str] = {
    ("pool/calls/execute.py", "Calls.execute"): "Pool.execute",
    ("pool/calls/execute.py", "Calls.map"): "Pool.map",
    ("_map_results.py", "open_map"): "Pool.map",
    ("pool/calls/session.py", "Session._bind"): "Session.execute",
    ("_map_results.py", "MapResults.__aiter__"): "the map",
    ("_map_results.py", "MapResults.__anext__"): "the map",
    ("pool/pool.py", "Pool.__repr__"): "Runtime.__repr__",
    ("pool/calls/interface.py", "Calling.map"): "Pool.execute_many",
    ("_map_results.py", "MapResults._next_of_inputs"): "the iterable that the map was given",
    ("observe/events.py", "EventBus.subscribe"): "entering its block",
    ("observe/events.py", "EventStream.__init__"): "EventBus.subscribe",
}


def outcome(result: Mapping[str, Any]) -> str:
    """The worst that can be said of a try."""
    if "hang" in result:
        return "hang"
    if "died" in result:
        return "process died"
    if "torn" in result:
        return "runtime ended"
    if result["path"] is None:
        return "not reached"
    if "opened" in result:
        return _of_a_life(result)
    faults = " ".join(result["faults"])
    if "books:" in faults:
        return "books wrong"
    if "seat:" in faults:
        return "seat lost"
    if "workers:" in faults:
        return "worker missing"
    if result["after"]:
        return "calls fail after it"
    if "leak:" in faults:
        return "leak"
    troubles = result["troubles"]
    codes = {code for _, _, code, _, _ in troubles}
    whose = {group.split()[-1] for group, *_ in troubles}
    if "stranded" in codes:
        return "call stranded"
    if {"main", "by"} <= whose:
        return "bystander hurt"
    target = Target(*result["target"][:3])
    itself = (target.file, target.name) in CALLED
    if any(code == "raw" and depth > 1 for _, _, code, _, depth in troubles) and not itself:
        return "raw error for its caller"
    if _is_swallowed(result):
        return "swallowed"
    if codes & {"connection_lost", "unreachable"} and "wrong" not in codes:
        return "connection closed"
    if whose == {"strangers"} and all("BrokenResourceError" in text for *_, text, _ in troubles):
        return "connection closed"
    if "wrong" in codes:
        return "another result"
    if "raw" in codes:
        return "raised by the function that was called"
    if "internal" in codes:
        return "internal error for its caller"
    if result["restarts"] or codes & {"worker_crashed", "session_worker_unavailable"}:
        return "worker replaced"
    if codes & {"tool_error", "invalid_payload"} and all("Injected" in text for *_, text, _ in troubles):
        return "call failed"
    if codes == {"worker_startup"} and whose <= {"main", "tasks"}:
        return "worker not replaced at its owner's request"
    return f"other errors: {', '.join(sorted(codes))}" if codes else "survived"


def _of_a_life(result: Mapping[str, Any]) -> str:
    """While it opens or closes, the application is told, or nobody has to be; nothing may be left in either case."""
    if result["faults"]:
        return "leak"
    if result["raised"] is not None:
        return "raised to the application"
    if not result["served"]:
        return "calls fail after it"
    return "swallowed" if _is_swallowed(result) else "survived"


def _is_swallowed(result: Mapping[str, Any]) -> bool:
    """Whether nobody was told of it who should have been."""
    if result["told"]:
        return False
    above = {tuple(re.split(r":[0-9]+ ", where)) for where in result["path"][1:]}
    return not above & MAY_KEEP_SILENT.keys()


def may_end_it(target: Target) -> bool:
    """Whether the runtime may end by what this function raises."""
    return "runtime ended" in EXCEPTED.get((target.file, target.name), ((),))[0]


def is_good(result: Mapping[str, Any], phase: str) -> bool:
    """Whether a try has come out as it should."""
    found = outcome(result)
    if found in GOOD or (phase != "running" and found == "raised to the application"):
        return True
    file, name, *_ = result["target"]
    return (file, name) in EXCEPTED and found in EXCEPTED[file, name][0]
