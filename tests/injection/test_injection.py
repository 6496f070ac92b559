"""A sample of what ``python -m tests.injection`` does with every function: real processes, both ends, everything in use.

Each of these functions is one of its kind: of the ledger's decisions, of a worker's life, of a connection, of an observer, of a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

import snakepit_trio
from tests.injection.tracing import Target
from tests.injection.trying import Settings, trying
from tests.injection.verdict import CALLED, EXCEPTED, MAY_KEEP_SILENT, is_good, outcome

HOST = [
    ("pool/scheduling/ledger.py", "Ledger.start", 3),
    ("pool/fleet/dispatch.py", "WorkerDispatch.worker_gone", 1),
    ("pool/observer.py", "RequestObserver.__call__", 3),
    ("pool/fleet/slots.py", "Slots._retire", 1),
    ("supervision/slot.py", "Slot._run_worker", 1),
    ("supervision/worker.py", "Worker._live", 1),
    ("tools/serving.py", "HostToolServer._serve", 3),
    ("bridge/server_call.py", "ServerCall.conclude", 1),
    ("bridge/client_connection.py", "BridgeConnection.arrived", 3),
]
WORKER = [
    ("worker/exchange.py", "Exchange._on_call", 3),
    ("worker/shared_loop.py", "SharedLoop.come_back", 1),
    ("worker/loop_runner.py", "LoopRunner._run_in_thread", 1),
    ("worker/service.py", "WorkerService._handshake", 1),
    ("worker/call.py", "Call.finish", 3),
]
TEMPLATE = [("launch/template.py", "_fork", 1)]
CLIENT = [
    ("client/channel.py", "Link._exchange", 3),
    ("client/host_tools.py", "_Server._run", 1),
    ("wire/connection.py", "Connection.unary.<locals>.on_end", 3),
    ("wire/http2/pipe.py", "FramePipe.send", 3),
]


def check(settings: Settings, functions: list[tuple[str, str, int]]) -> None:
    found = []
    with trying(settings) as tries:
        for result in tries.run([(Target(file, name, 0), entry) for file, name, entry in functions]):
            what = outcome(result)
            if what == "not reached" or not is_good(result, settings.phase):
                # Once more, for the machine may have been too busy for it.
                (again,) = tries.run([(Target(*result["target"][:3]), result["target"][3])])
                what, result = outcome(again), again
            if what == "not reached" or not is_good(result, settings.phase):
                found.append(f"{what}: {result}")
    assert not found, "\n".join(found)


@pytest.mark.timeout(300)
def test_an_exception_in_the_host_ends_no_more_than_what_it_ran_for(anyio_backend: str) -> None:
    check(Settings(side="host", backend=anyio_backend), HOST)


@pytest.mark.timeout(300)
def test_an_exception_in_a_worker_ends_no_more_than_the_worker(anyio_backend: str) -> None:
    check(Settings(side="worker", backend=anyio_backend), WORKER)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("side", "functions"), [("template", TEMPLATE), ("client", CLIENT)])
def test_an_exception_elsewhere_ends_no_more_than_a_call(side: str, functions: list[tuple[str, str, int]]) -> None:
    check(Settings(side=side), functions)


def test_what_is_excepted_is_there() -> None:
    """A function that was renamed or moved away is not excepted any more, and has no place in a list."""
    package = Path(snakepit_trio.__file__).parent
    named = {*EXCEPTED, *MAY_KEEP_SILENT, *CALLED}
    known = {file: set(_functions(compile((package / file).read_text(), file, "exec"))) for file, _ in named}
    assert not [(file, name) for file, name in named if name not in known[file]]


def _functions(code: CodeType) -> Iterator[str]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner.co_qualname
            yield from _functions(inner)
