"""Fixtures of every test: both event loops, hypothesis profiles, and a check that nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.observe.catalogue import check
from snakepit_trio.observe.events import EventBus
from snakepit_trio.testing import no_leaks

hypothesis.settings.register_profile("ci", max_examples=150, deadline=None, derandomize=True)
hypothesis.settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", max_examples=5000, deadline=None)
# That something fails is enough: nobody reads the smallest example.
_NO_SHRINKING = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
hypothesis.settings.register_profile(
    "mutations", max_examples=150, deadline=None, derandomize=True, database=None, phases=_NO_SHRINKING
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

BACKENDS = ["trio", "asyncio"]

# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=BACKENDS, help="run the tests of one event loop only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("--backend")
    if chosen:
        # What runs on no event loop, or on one of its own, is run with the first backend only.
        others = [item for item in items if _backend_of(item) != chosen]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def _backend_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("anyio_backend", BACKENDS[0])) if callspec else BACKENDS[0]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop that a test runs on."""
    return str(request.param)


def of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of this test run see, whether or not pytest-xdist has made several."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True, scope="session")
def private_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests' runs are neither the user's nor those of other tests on this machine."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SNAKEPIT_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        # Hundreds of interpreters are started here: what they import is compiled once, and out of the way.
        patch.delenv("PYTHONDONTWRITEBYTECODE")
        flags = subprocess._args_from_interpreter_flags  # type: ignore[attr-defined]
        patch.setattr(subprocess, "_args_from_interpreter_flags", lambda: [flag for flag in flags() if flag != "-B"])
        patch.setenv("PYTHONPYCACHEPREFIX", str(of_all_workers(tmp_path_factory) / "bytecode"))
    # Short: the path of a Unix socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="spt", ignore_cleanup_errors=True) as place:
        patch.setenv("TMPDIR", place)
        patch.setattr(tempfile, "tempdir", place)
        yield
        patch.undo()


@pytest.fixture(autouse=True)
def events_are_in_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every emission is what the catalogue says."""
    monkeypatch.setattr(EventBus, "check", staticmethod(check))


@pytest.fixture
def internal_errors() -> list[BaseException]:
    """What a test that provokes internal errors asks for: they are collected here, and don't fail it."""
    return []


@pytest.fixture(autouse=True)
def no_internal_errors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in whose process the library has met an exception that it did not expect."""
    provoked = "internal_errors" in request.fixturenames
    found: list[BaseException] = request.getfixturevalue("internal_errors") if provoked else []
    monkeypatch.setattr(InternalErrors, "check", staticmethod(lambda exc, ended: found.append(exc)))
    yield
    if found and not provoked:
        raise BaseExceptionGroup("internal errors", found)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test with real processes that leaves a process, thread, descriptor, segment or directory."""
    folder = Path(str(request.node.path)).parent.name
    if folder in ("integration", "injection", "chaos", "netns"):
        with no_leaks():
            yield
        return
    # The collector then looks only at what the test makes. Garbage must be gone before it looks at everything again, for that
    # is when the next test begins.
    gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        gc.unfreeze()
