"""OpenTelemetry: the whole trace of requests, on both sides, and the ids in the logs of both."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: list[str], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:snakepit_trio", *code],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["trio", "asyncio"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    chosen = request.config.getoption("--backend")
    if chosen and chosen != request.param:
        pytest.skip("the other event loop is asked for")
    file = tmp_path_factory.mktemp("trace") / "worker.jsonl"
    found: dict[str, Any] = json.loads(run(["-m", "tests.integration.traced_app", request.param], TRACE_FILE=str(file)))
    found["worker"] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


def host_spans(seen: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [span for span in seen["spans"] if span["name"] == name]


def test_the_whole_trace_of_a_call(seen: dict[str, Any]) -> None:
    (outer,) = host_spans(seen, "outer")
    call = host_spans(seen, "work")[0]
    assert call["kind"] == "CLIENT"
    assert (call["trace"], call["parent"]) == (outer["trace"], outer["id"])
    attributes = call["attributes"]
    assert attributes["rpc.system.name"] == "snakepit"
    assert attributes["rpc.method"] == "work"
    assert attributes["rpc.response.status_code"] == "OK"
    assert attributes["snakepit.pool"] == "default"
    assert attributes["snakepit.worker_id"]
    names = [name for name, _, _ in call["events"]]
    assert names == ["queue", "dispatch", "execute", "decode"]
    times = [call["start"], *(moment for _, moment, _ in call["events"]), call["end"]]
    assert all(after - before > -5_000_000 for before, after in itertools.pairwise(times)), times
    assert all(facts["snakepit.duration"] >= 0 for name, _, facts in call["events"] if name != "dispatch")

    (served,) = [s for s in seen["worker"] if s["parent_id"] == call["id"]]
    assert served["kind"] == "SpanKind.SERVER"
    assert served["context"]["trace_id"] == call["trace"]
    assert served["attributes"]["snakepit.request_id"] == attributes["snakepit.request_id"]
    (inside,) = [s for s in seen["worker"] if s["parent_id"] == served["context"]["span_id"]]
    assert inside["name"] == "inside"


def test_every_request_has_one_span_on_each_side(seen: dict[str, Any]) -> None:
    ours = [span for span in seen["spans"] if span["kind"] == "CLIENT"]
    assert sorted(span["name"] for span in ours) == ["ask", "count", "fail", "hang", "work", "work"]
    assert len({span["attributes"]["snakepit.request_id"] for span in ours}) == 6
    served = {span["parent_id"] for span in seen["worker"] if span["kind"] == "SpanKind.SERVER"}
    finished = {span["id"] for span in ours if span["attributes"]["rpc.response.status_code"] != "CANCELLED"}
    assert finished <= served


def test_a_failure_and_a_cancel(seen: dict[str, Any]) -> None:
    (failed,) = host_spans(seen, "fail")
    assert failed["status"] == "ERROR"
    assert failed["attributes"]["error.type"] == "ValueError"
    assert failed["attributes"]["rpc.response.status_code"] == "UNKNOWN"
    (served,) = [s for s in seen["worker"] if s["parent_id"] == failed["id"]]
    assert served["status"]["status_code"] == "ERROR"
    assert "hunter2" not in json.dumps(seen["worker"]) + json.dumps(seen["spans"])
    cancelled = [s for s in host_spans(seen, "hang") if s["attributes"]["rpc.response.status_code"] == "CANCELLED"]
    assert len(cancelled) == 1
    assert cancelled[0]["status"] == "UNSET"


def test_what_a_host_tool_does_belongs_to_the_trace(seen: dict[str, Any]) -> None:
    (asked,) = host_spans(seen, "ask")
    (inner,) = host_spans(seen, "in the host")
    assert (inner["trace"], inner["parent"]) == (asked["trace"], asked["id"])


def test_metrics_by_their_conventional_names(seen: dict[str, Any]) -> None:
    found = seen["metrics"]
    durations = {(a["rpc.method"], a["rpc.response.status_code"]): n for a, n, _ in found["rpc.client.call.duration"]}
    assert durations["work", "OK"] == 2
    assert durations["fail", "UNKNOWN"] == 1
    assert {unit for _, _, unit in found["rpc.client.call.duration"]} == {"s"}
    assert found["snakepit.workers"]
    assert found["snakepit.queue.wait"][0][1] >= 5
    assert "snakepit.workers" not in seen["after"], "a closed runtime observes nothing"


def test_logs_of_both_sides_say_for_which_request(seen: dict[str, Any]) -> None:
    (call,) = [s for s in host_spans(seen, "work") if s["attributes"]["rpc.response.status_code"] == "OK"][:1]
    (asked,) = host_spans(seen, "ask")
    id = call["attributes"]["snakepit.request_id"]
    assert any(f"WARNING traced [{id}] working on 1" in line for line in seen["logs"]), seen["logs"]
    assert f"app [{asked['attributes']['snakepit.request_id']}] again 1" in seen["logs"]


def test_without_the_package() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import anyio, snakepit_trio as sp\n"
        "async def main():\n"
        "    async with sp.open_pool('tests.adapters.basic', size=1) as pool:\n"
        "        print(await pool.execute('whoami', metadata={'a': 'b'}))\n"
        "anyio.run(main, backend='trio')\n"
    )
    assert "'metadata': {'a': 'b'}" in run(["-c", code])


def test_a_process_that_does_not_use_it_never_imports_it() -> None:
    code = (
        "import sys, anyio, snakepit_trio as sp\n"
        "async def main():\n"
        "    async with sp.open_pool('tests.adapters.basic', size=1) as pool:\n"
        "        await pool.execute('whoami')\n"
        "anyio.run(main, backend='trio')\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus', 'tenacity'))])\n"
    )
    assert run(["-c", code]) == "[]\n"
