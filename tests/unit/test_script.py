"""Script mode's exit codes, by what its main function raises. No worker processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import snakepit_trio as sp


class _Runtime:
    killed: dict[str, Any] = {}


@asynccontextmanager
async def _opened(config: sp.RuntimeConfig) -> AsyncIterator[Any]:
    yield _Runtime()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (SystemExit(), 0, ""),
        (SystemExit(9), 9, ""),
        (SystemExit("a last word"), 1, "a last word\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_a_script_raises(
    backend: str,
    raised: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(runtime: sp.Runtime) -> None:
        raise raised

    monkeypatch.setattr("snakepit_trio.script.open_runtime", _opened)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert sp.run(main, "never_imported", backend=backend) == code
    finally:
        # After an interrupt the process is expected to exit, and listens to no other.
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("adapter", ["no adapter:", "__main__", "__main__:Math"])
def test_a_refused_adapter(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sp.run(None, adapter) == 2  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("snakepit: adapter: expected")


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_script_in_a_thread_of_its_own(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakepit_trio.script.open_runtime", _opened)

    async def main(runtime: Any) -> int:
        return 7

    codes: list[int] = []
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="x")])
    thread = threading.Thread(target=lambda: codes.append(sp.run(main, config, backend=backend)))
    thread.start()
    thread.join()
    assert codes == [7]
