"""The commands as a user runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import snakepit_trio as sp

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def snakepit(*arguments: str, cwd: Path = EXAMPLES, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "snakepit_trio", *arguments],
        cwd=cwd, input=stdin, capture_output=True, text=True, timeout=90, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
    )  # fmt: skip


def started(*arguments: str, state: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "snakepit_trio", *arguments],
        cwd=EXAMPLES, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **({"SNAKEPIT_STATE_DIR": str(state)} if state else {})},
        start_new_session=True,
    )  # fmt: skip


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_call() -> None:
    done = snakepit("call", "code_metrics", "measure", '{"path": "code_metrics.py"}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["functions"] == 3
    failed = snakepit("call", "code_metrics", "measure", '{"path": "nowhere.py"}')
    assert failed.returncode == 1
    assert "FileNotFoundError" in failed.stderr
    assert "code_metrics.py" in failed.stderr
    as_json = snakepit("call", "--json", "code_metrics", "measure", '{"path": 1}')
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["error"]["code"] == "invalid_parameter"


def test_call_shows_what_a_worker_wrote_before_it_died(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(
        "import os, sys\nimport snakepit_trio as sp\n\n@sp.tool\ndef die() -> None:\n"
        "    print('out of cheese\\n  at cheese.c:42', file=sys.stderr, flush=True)\n    os._exit(3)\n"
    )
    done = snakepit("call", "fragile", "die", cwd=tmp_path)
    assert done.returncode == 1
    *written, said = done.stderr.splitlines()
    assert [line.partition("] ")[2] for line in written] == ["out of cheese", "  at cheese.c:42"]
    assert said == "snakepit: worker_crashed: the worker exited with code 3"
    error = json.loads(snakepit("call", "--json", "fragile", "die", cwd=tmp_path).stdout)["error"]
    assert (error["code"], error["stderr"]) == ("worker_crashed", "out of cheese\n  at cheese.c:42")


def test_an_adapter_whose_import_ends_its_process(tmp_path: Path) -> None:
    (tmp_path / "fatal.py").write_text("import os\nprint('no licence', flush=True)\nos._exit(3)\n")
    done = snakepit("tools", "fatal", cwd=tmp_path)
    assert done.returncode == 2
    assert "imports the adapter 'fatal' and forks its workers is lost: the adapter's import ended it" in done.stderr
    assert "no licence" in done.stderr
    assert "template" not in done.stderr


def test_an_adapter_that_is_no_python_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("def add(a: int) -> int\n    return a\n")
    done = snakepit("tools", "wrong", cwd=tmp_path)
    assert done.returncode == 2
    first, second, *_ = done.stderr.splitlines()
    assert "SyntaxError: expected ':'" in first
    assert second.startswith('  File "')


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["call", "code_metrics", "measure", "{"], "not JSON"),
        (["call", "code_metrics", "measure", "[]"], "must be a JSON object"),
        (["call", "no_such_module", "x"], "No module named 'no_such_module'"),
        (["call", "code_metrics.py", "measure"], "write 'code_metrics', without '.py'"),
        (["call", "./code_metrics.py", "measure"], "no path"),
        (["serve"], "no snakepit.toml"),
        (["map", "code_metrics", "measure", "nowhere"], "no such file: nowhere"),
        (["map", "code_metrics", "nothing", "code_metrics.py"], "no tool 'nothing'"),
        (["tools", "two words"], "expected 'package.module'"),
    ],
)
def test_what_can_not_be_started(arguments: list[str], text: str) -> None:
    done = snakepit(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_reads_why_nothing_could_be_started() -> None:
    done = snakepit("call", "--json", "no_such_module", "x")
    assert (done.returncode, done.stderr) == (2, "")
    assert "no_such_module" in json.loads(done.stdout)["error"]["message"]
    done = snakepit("call", "--json", "code_metrics", "measure", "{")
    assert (done.returncode, done.stderr) == (2, "")
    assert "not JSON" in json.loads(done.stdout)["error"]["message"]


def test_tools() -> None:
    done = snakepit("tools", "code_metrics")
    assert done.returncode == 0
    assert "measure" in done.stdout
    assert "path: string" in done.stdout
    (tool,) = json.loads(snakepit("tools", "code_metrics", "--json").stdout)
    assert tool["parameters"]["properties"]["path"] == {"type": "string"}
    assert tool["idempotent"]


def test_map_files(tmp_path: Path) -> None:
    for n in range(10):
        (tmp_path / f"m{n}.py").write_text(f"def f():\n    return {n}\n")
    (tmp_path / "bad.py").write_text("def f(:\n")
    done = snakepit("map", "code_metrics", "measure", str(tmp_path), "--glob", "*.py", "--ordered", "--size", "2")
    assert done.returncode == 1
    found = lines(done.stdout)
    assert [line["index"] for line in found] == list(range(11))
    assert found[0]["input"] == str(tmp_path / "bad.py")
    assert found[0]["error"]["type"] == "SyntaxError"
    assert all(line["result"]["functions"] == 1 for line in found[1:])
    assert "1 of 11 inputs failed" in done.stderr
    good = snakepit("map", "code_metrics", "measure", str(tmp_path / "m1.py"), "--param", "path={path}", "--json")
    assert good.returncode == 0


def test_map_reads_parameters_that_are_no_text_as_json(tmp_path: Path) -> None:
    (tmp_path / "adapter.py").write_text(
        "from typing import Literal\nimport snakepit_trio as sp\n\n@sp.tool\n"
        "def show(path: str, n: float, m: dict[str, int], mode: Literal['a', 'b'], some: int | None, any=None) -> list:\n"
        "    return [path, n, m, mode, some, any]\n"
    )
    for name in ("7", "x"):
        (tmp_path / name).write_text("")
    params = ["--param=path=1", "--param=n=0.5", '--param=m={"k": 1}', "--param=mode=a", "--param=any=2"]
    done = snakepit("map", "adapter", "show", "7", "x", *params, "--param=some={stem}", "--ordered", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    good, bad = lines(done.stdout)
    assert good["result"] == ["1", 0.5, {"k": 1}, "a", 7, "2"]
    assert bad["error"]["message"] == "some: expected integer | null as JSON, got 'x'"
    refused = snakepit("map", "adapter", "show", "7", *params, "--param=n=much", "--param=some=null", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "snakepit: --param n=much: n: expected number as JSON, got 'much'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["call", "math", "x"],
        ["tools", "math"],
        ["demo", "--limit=2"],
        ["diagnose"],
        ["serve"],
        ["map", "math", "x", "-"],
    ],
)
def test_a_working_directory_that_is_gone_is_named(tmp_path: Path, arguments: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    # The interpreter starts in it: what is tried is what the command says.
    code = "import os; os.rmdir(os.getcwd()); from snakepit_trio.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=gone, capture_output=True, text=True, timeout=90, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert f"the working directory {gone} has been deleted: change to one that exists" in done.stderr


def test_map_lines() -> None:
    stdin = '{"path": "code_metrics.py"}\n\n{"path": "gone.py"}\n'
    done = snakepit("map", "code_metrics", "measure", "-", stdin=stdin)
    assert done.returncode == 1
    found = {line["index"]: line for line in lines(done.stdout)}
    assert found[0]["result"]["lines"] > 10
    assert found[1]["input"] == "line 3"


def test_a_bad_line_stops_no_other(tmp_path: Path) -> None:
    stdin = '{"path": "code_metrics.py"}\nnot JSON\n[1]\n{"path": "code_metrics.py"}'
    done = snakepit("map", "code_metrics", "measure", "-", "--ordered", stdin=stdin)
    assert done.returncode == 1
    found = lines(done.stdout)
    assert [line["input"] for line in found] == ["line 1", "line 2", "line 3", "line 4"]
    assert ["result" in line for line in found] == [True, False, False, True]
    assert "not JSON" in found[1]["error"]["message"]
    assert "not a JSON object" in found[2]["error"]["message"]
    # The same from a file, which can't be waited for.
    (tmp_path / "input").write_text(stdin)
    with (tmp_path / "input").open() as file:
        command = [sys.executable, "-m", "snakepit_trio", "map", "code_metrics", "measure", "-", "--ordered"]
        again = subprocess.run(
            command, cwd=EXAMPLES, stdin=file, capture_output=True, text=True, timeout=90, check=False
        )
    assert lines(again.stdout) == found


def test_a_line_is_answered_before_the_next_one_comes() -> None:
    process = started("map", "code_metrics", "measure", "-")
    assert process.stdin is not None
    assert process.stdout is not None
    for _ in range(2):
        process.stdin.write('{"path": "code_metrics.py"}\n')
        process.stdin.flush()
        assert "result" in json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert "interrupted: 2 of" in process.communicate()[1]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_command_in_order(tmp_path: Path, number: signal.Signals, code: int, word: str) -> None:
    process = started("call", "tests.adapters.basic", "count", '{"n": 1000000000}', state=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert stderr == f"snakepit: {word}\n"
    assert children
    assert not any(child.is_running() for child in children)
    assert list((tmp_path / "runs").iterdir()) == []


def test_what_can_not_be_written_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "snakepit_trio", "--help"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "snakepit: [Errno 28] No space left on device\n"


def test_map_takes_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nimport snakepit_trio as sp\n\n@sp.tool\ndef nap(seconds: float) -> float:\n"
        "    time.sleep(seconds)\n    return seconds\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "snakepit_trio", "map", "slow", "nap", "-", "--size", "1"],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write('{"seconds": 0.001}\n{"seconds": 60}\n')
    process.stdin.close()
    process.stdin = None
    first = process.stdout.readline()
    assert json.loads(first)["result"] == 0.001
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: 1 of the inputs were done" in stderr
    assert "Traceback" not in stderr


def test_demo(tmp_path: Path) -> None:
    done = snakepit("demo", "--limit", "60", "--size", "2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["modules"] == 60
    assert found["errors"] == []
    assert found["restarts"] == 1
    assert found["killed"]["replaced_by"]
    shown = snakepit("demo", "--limit", "40", "--size", "2", cwd=tmp_path)
    assert shown.returncode == 0
    assert "was killed with SIGKILL" in shown.stdout
    assert "Nothing was lost." in shown.stdout


def test_help_names_the_commands() -> None:
    done = snakepit("--help")
    assert done.returncode == 0
    for command in ("demo", "map", "call", "tools"):
        assert command in done.stdout
    assert snakepit("--version").stdout == f"snakepit-trio {sp.__version__}\n"


def test_bench() -> None:
    done = snakepit("bench", "--calls", "200", "--rounds", "1", "--callers", "8", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["workers"], record["callers"], record["payload"]) == (2, 8, 64)
    for name in ("snakepit_trio", "ProcessPoolExecutor"):
        found = record["medians"][name]
        assert 0 < found["p50_us"] <= found["p99_us"] <= found["p999_us"]
        assert found["calls_per_second"] > 0
    assert record["medians"]["snakepit_trio"]["chunks_per_second"] > 0


def test_serve_and_call(tmp_path: Path) -> None:
    (tmp_path / "snakepit.toml").write_text(
        '[[pools]]\nadapter = "tests.adapters.basic"\nsize = 1\nstop_grace = 30\n[bridge]\naddress = "tcp:127.0.0.1:0"\n'
    )
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "snakepit_trio", "serve", "--json"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        )  # fmt: skip
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        file = Path(told["token_file"])
        assert file.stat().st_mode & 0o777 == 0o600
        at = ["--address", told["address"], "--token-file", str(file)]
        done = snakepit("call", *at, "add", '{"a": 1, "b": 2}')
        assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
        assert snakepit("call", *at, "count", '{"n": 2}').stdout.split() == ["0", "1"]
        failed = snakepit("call", *at, "--json", "nothing")
        assert failed.returncode == 1
        assert json.loads(failed.stdout)["error"]["code"] == "tool_not_found"
        wrong = tmp_path / "wrong"
        wrong.write_text("wrong")
        assert "token" in snakepit("call", "--address", told["address"], "--token-file", str(wrong), "add").stderr
        slow = stack.enter_context(started("call", *at, "count", '{"n": 20000}'))
        stack.callback(slow.kill)
        assert slow.stdout is not None
        assert slow.stdout.readline() == "0\n"
        # More than the pipe between it and us holds: it is under way until it is read, and is allowed to end.
        process.terminate()
        assert [*map(int, slow.stdout.read().split())] == list(range(1, 20000))
        assert slow.wait(timeout=30) == 0
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143, stderr
    assert not file.exists()
    assert file.name not in stderr
    assert snakepit("serve", "--config", "nowhere.toml").returncode == 2


def test_adapters_are_looked_for_in_the_current_directory_first(tmp_path: Path) -> None:
    """A console script's own directory is the first of its path, and the current one is in none."""
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if p]; sys.argv = ['snakepit', '--version']\n"
        "from snakepit_trio.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(sys.path[0] == '', sys.path.count(''))\n"
        "try:\n    main()\nexcept SystemExit:\n    print(sys.path[0] == '', sys.path.count(''))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[1::2] == ["True 1", "True 1"], done.stdout + done.stderr
