"""A secret goes in by every way there is, and is looked for at every place where things become visible."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio

#: Found by the library's own rules only where its surroundings give it away.
CANARY = "hunter2-correct-horse"
#: Forms that give themselves away, and one that only the application's pattern knows.
FORMS = {
    "bearer": f"Bearer {CANARY}",
    "assignment": f"password={CANARY}",
    "url": f"postgres://me:{CANARY}@host/db",
    "key": f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----",
    "pattern": f"acct#{CANARY}#",
}
PATTERN = r"acct#[^#]*#"


class Everything(logging.Handler):
    """Keeps every record with all its attributes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(f"{record.getMessage()} {record.__dict__!r}")
        if record.exc_info:
            self.seen.append("".join(traceback.format_exception(*record.exc_info)))


def everything(error: BaseException) -> str:
    """All that an error shows."""
    parts = [str(error), repr(error), repr(error.__dict__), "".join(traceback.format_exception(error, limit=-1))]
    return "\n".join(parts)


async def failure(call: Any) -> str:
    try:
        await call
    except sp.SnakepitError as exc:
        return everything(exc)
    raise AssertionError("it did not fail")


async def poured(pool: sp.Pool, text: str) -> None:
    async with pool.stream("pour", {"text": text}) as chunks:
        async for _ in chunks:
            pass


@pytest.mark.parametrize("form", FORMS)
async def test_it_is_nowhere(form: str, tmp_path: Path) -> None:
    text = FORMS[form]
    handler = Everything()
    log = logging.getLogger("snakepit_trio")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    places: dict[str, str] = {}
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter="tests.adapters.leaky", size=1, env={"CANARY_PASSWORD": CANARY})],
        state_dir=str(tmp_path),
        redact_patterns=[PATTERN],
        bridge=sp.BridgeConfig(token=f"{CANARY}{'-' * 40}"),
        metrics=sp.MetricsConfig(address=None),
    )
    places["repr of the configuration"] = repr(config)
    try:
        with anyio.fail_after(60):
            async with sp.open_runtime(config) as runtime, runtime.events.subscribe() as events:
                pool = runtime.pool()

                @runtime.tools.host_tool
                def blow(text: str) -> None:
                    raise RuntimeError(f"the host had {text}")

                metadata = {"authorization": f"Bearer {CANARY}", "note": text}
                assert await pool.execute("take", {"password": CANARY, "text": text}, metadata=metadata) == CANARY
                places["what a tool raises"] = await failure(pool.execute("blow", {"text": text}))
                places["what a stream raises"] = await failure(poured(pool, text))
                places["what a host tool raises"] = await failure(pool.execute("ask", {"text": text}))
                places["a refused argument"] = await failure(pool.execute("typed", {"password": CANARY}))
                places["an unknown argument"] = await failure(pool.execute("blow", {"text": text, "token": CANARY}))
                places["last words"] = await failure(pool.execute("leave", {"text": text}))
                await pool.wait_ready()
                async with pool.session("s") as session:
                    await session.put("password", CANARY)
                    await runtime.programs.put("p", CANARY.encode())
                    places["reprs"] = repr([runtime, pool, session, runtime.sessions, runtime.programs, runtime.bridge])
                    places["infos"] = repr([pool.stats(), pool.workers(), await runtime.sessions.list()])
                me = psutil.Process()
                places["command lines"] = repr([child.cmdline() for child in me.children(recursive=True)])
                places["a dump"] = json.dumps(runtime.recorder.dump())
                assert runtime.recorder.write() is not None
                assert runtime.metrics is not None
                places["metrics"] = repr(list(runtime.metrics.collector.collect()))
                seen = []
                while (event := events.receive_nowait()) is not None:
                    seen.append(event)
                assert {"leak", "request.failed", "worker.crashed"} <= {event.name for event in seen}
                places["events"] = repr(seen)
                places["files of the state"] = "".join(
                    file.read_bytes().decode("latin-1")
                    for file in tmp_path.rglob("*")
                    if file.is_file() and "token" not in file.name
                )
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    places["logs"] = "\n".join(handler.seen)
    assert "on stdout" in places["logs"]
    assert "on stderr" in places["logs"]
    assert "logged" in places["logs"]
    found = {place: line for place, shown in places.items() for line in shown.splitlines() if CANARY in line}
    assert not found, found


async def test_a_setup_that_tells(tmp_path: Path) -> None:
    with pytest.raises(sp.WorkerStartupError) as caught:
        with anyio.fail_after(30):
            env = {"MOODY": str(tmp_path), "SAYS": f"acct#{CANARY}# password={CANARY}"}
            pools = [sp.PoolConfig(adapter="tests.adapters.moody", size=1, env=env, restart_limit=0)]
            async with sp.open_runtime(sp.RuntimeConfig(pools=pools, redact_patterns=[PATTERN])):
                pass
    assert "not now" in str(caught.value)
    assert CANARY not in everything(caught.value)


def test_nobody_who_looks_sees_it(tmp_path: Path) -> None:
    """Clients of every kind, an operator, an agent, and what collects traces and metrics."""
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.canary_app", str(tmp_path), json.dumps(FORMS)],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places = {**json.loads(done.stdout), "stderr": done.stderr}
    assert {"spans", "metrics", "status --json", "status --tree", "diagnose --flight", "events"} <= places.keys()
    found = {place: line for place, shown in places.items() for line in shown.splitlines() if CANARY in line}
    assert not found, found
