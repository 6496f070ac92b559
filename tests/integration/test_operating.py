"""The operating commands as a user runs them: each a subprocess, beside a runtime that is really running."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = '''
import time
import snakepit_trio as sp

@sp.tool
def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)
    return seconds
'''
# The program's name holds what a terminal would act on.
PROGRAM = "ho\x1b[31mst.py"
HOST = """
import sys, anyio
import snakepit_trio as sp

async def main(runtime):
    pool = runtime.pool()
    async with anyio.create_task_group() as nursery, pool.session("user-42") as session:
        async with runtime.events.subscribe("request.dispatched") as events:
            nursery.start_soon(session.execute, "nap", {"seconds": 600})
            await events.__anext__()
        print("up", runtime.run_id, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()

config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="napping", size=2, env={"API_TOKEN": "hunter2"}, cancel_grace=0.1)])
sys.exit(sp.run(main, config))
"""


def environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "TMPDIR")}
    # An empty PATH: nothing here looks for a program.
    return {**kept, "PATH": "", "PYTHONPATH": str(ROOT), "COLUMNS": "160", "SNAKEPIT_STATE_DIR": str(state)}


def snakepit(state: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snakepit_trio", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=90, check=False, env=environment(state),
    )  # fmt: skip


@contextmanager
def host(place: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A runtime in a process of its own; gives its run id."""
    (place / "napping.py").write_text(ADAPTER)
    (place / PROGRAM).write_text(HOST)
    process = subprocess.Popen(
        [sys.executable, PROGRAM],
        cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(place / "state"),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        word, run_id = process.stdout.readline().split()
        assert word == "up"
        yield process, run_id
    finally:
        process.communicate(input="", timeout=30) if process.poll() is None else process.communicate()


def contents(state: Path) -> dict[str, tuple[Any, ...]]:
    """Every file of the state directory: what it is, how it may be used, when it was changed, what is in it."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(state.rglob("*")):
        facts = path.lstat()
        data = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(state))] = (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns, data)
    return found


def test_looking_at_a_running_runtime(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with host(tmp_path) as (process, run_id):
        before = contents(state)
        shown = snakepit(state, "status", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        for word in (run_id, f"pid {process.pid}", "default", "napping", "2/2", "busy", "ready", "nap", "1 session"):
            assert word in shown.stdout, word
        tree = snakepit(state, "status", "--tree", "--run", run_id[:4], cwd=tmp_path)
        for word in ("pool default", "worker ", "slot 0", "request ", "running for", "nurseries", "Slot.run"):
            assert word in tree.stdout, word
        for done in (shown, tree):
            assert "\x1b" not in done.stdout
            assert "hunter2" not in done.stdout
            assert "ho\\x1b[31mst.py" in done.stdout
        assert "session user-42" in tree.stdout
        (run,) = json.loads(snakepit(state, "status", "--json", cwd=tmp_path).stdout)["runs"]
        assert (run["run_id"], run["state"], run["pid"]) == (run_id, "running", process.pid)
        top = json.loads(snakepit(state, "top", "--json", cwd=tmp_path).stdout)
        assert [one["run_id"] for one in top["runs"]] == [run_id]
        (request,) = run["status"]["pools"][0]["requests"]
        assert request["age"] > 0
        flight = snakepit(state, "diagnose", "--flight", "--json", cwd=tmp_path)
        assert json.loads(flight.stdout)["run_id"] == run_id
        assert "hunter2" not in flight.stdout
        dump = tmp_path / "dump.json"
        assert snakepit(state, "diagnose", "--flight", "--output", str(dump), cwd=tmp_path).returncode == 0
        assert dump.stat().st_mode & 0o777 == 0o600
        doctor = snakepit(state, "doctor", "napping", cwd=tmp_path)
        assert doctor.returncode == 0, doctor.stdout
        assert "runs: 1 running, none stale" in doctor.stdout
        assert "napping comes up with 1 tools: nap" in doctor.stdout
        measured = json.loads(snakepit(state, "diagnose", "napping", "--json", cwd=tmp_path).stdout)
        assert contents(state) == before
        scaling = measured["scaling"]
        assert measured["adapter"] == "napping"
        assert scaling["workers"] == min(scaling["fits"].values()) > 0
        assert scaling["per_worker"]["memory"] > 1 << 20
        assert measured["latency"]["failed"] == 0
        # What an operator does.
        ids = {known["state"]: known["id"] for known in run["status"]["pools"][0]["workers"]}
        acted = snakepit(state, "worker", "restart", ids["ready"][:6], cwd=tmp_path)
        assert (acted.returncode, acted.stdout) == (0, f"restart of worker {ids['ready']}: done\n"), acted.stderr
        assert snakepit(state, "worker", "drain", ids["busy"], "--timeout", "0.1", cwd=tmp_path).returncode == 1
        shown = snakepit(state, "status", cwd=tmp_path).stdout
        assert "(1 cordoned)" in shown and f"{ids['busy']}" in shown and " cordoned " in shown, shown
        assert snakepit(state, "worker", "uncordon", ids["busy"], cwd=tmp_path).returncode == 0
        assert "no workers have an id" in snakepit(state, "worker", "kill", "nobody", cwd=tmp_path).stderr
        assert snakepit(state, "resize", "3", cwd=tmp_path).stdout == "pool default has 3 workers\n"
        assert "no pool 'x'" in snakepit(state, "resize", "3", "--pool", "x", cwd=tmp_path).stderr
        (run,) = json.loads(snakepit(state, "status", "--json", cwd=tmp_path).stdout)["runs"]
        # What is stale is told apart, and cleared away by nobody but cleanup.
        workers = [worker["pid"] for worker in run["status"]["pools"][0]["workers"]]
        process.send_signal(signal.SIGKILL)
        process.wait()
        before = contents(state)
        stale = snakepit(state, "status", cwd=tmp_path)
        assert f"run {run_id}" in stale.stdout
        assert "stale" in stale.stdout
        assert f"stale: {run_id}" in snakepit(state, "doctor", cwd=tmp_path).stdout
        assert "no runtime is running" in snakepit(state, "diagnose", "--flight", cwd=tmp_path).stderr
        assert contents(state) == before
        would = json.loads(snakepit(state, "cleanup", "--dry-run", "--json", cwd=tmp_path).stdout)
        assert [found["run_id"] for found in would["runs"]] == [run_id]
        assert contents(state) == before
        swept = json.loads(snakepit(state, "cleanup", "--json", cwd=tmp_path).stdout)
        assert [found["run_id"] for found in swept["runs"]] == [run_id]
        assert list((state / "runs").iterdir()) == []
        assert "no runtime is running" in snakepit(state, "status", cwd=tmp_path).stdout
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_where_nothing_ever_ran(tmp_path: Path) -> None:
    state = tmp_path / "nowhere"
    for arguments in (["status"], ["status", "--json"], ["doctor"], ["cleanup", "--dry-run"]):
        done = snakepit(state, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        assert not state.exists(), arguments
    assert snakepit(state, "status", "--run", "abc", cwd=tmp_path).returncode == 1


def test_the_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    found = json.loads(snakepit(state, "doctor", "no_such_module", "--json", cwd=tmp_path).stdout)
    assert not found["ok"]
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["state directory"]["status"] == "warn"
    assert checks["state directory"]["remedy"] == f"chmod 700 {state}"
    assert checks["adapter"]["status"] == "fail"
    assert "No module named 'no_such_module'" in checks["adapter"]["message"]
    assert checks["lifeline"]["status"] == "ok"
    assert all(check["remedy"] for check in found["checks"] if check["status"] != "ok")
    (state / "x").write_text("")
    broken = snakepit(state / "x", "doctor", cwd=tmp_path)
    assert broken.returncode == 1
    assert "is no directory" in broken.stdout


def test_the_doctor_counts_descriptors(tmp_path: Path) -> None:
    limit = 16
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        "from snakepit_trio.cli import main\nsys.argv = ['snakepit', 'doctor']\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        env=environment(tmp_path / "state"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"FAIL  descriptors: {limit} open files" in done.stdout
    assert "ulimit -n" in done.stdout


def test_help_is_quick_and_looks_at_little(tmp_path: Path) -> None:
    """Its cost is what it imports: nothing of the runtime."""
    code = (
        "import sys\nsys.argv = ['snakepit', '--help']\nfrom snakepit_trio.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'anyio', 'trio', 'rich', 'textual', 'psutil', 'grpclib', 'snakepit_trio.runtime', 'snakepit_trio.control.server'}\n"
        "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env=environment(tmp_path / "state"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for command in ("status", "top", "doctor", "diagnose", "new", "cleanup"):
        assert f"\n  {command} " in done.stdout
