"""What the commands print and exit with, over a pool that is none: call, map, tools, new, worker, resize, and the token of mcp."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import snakepit_trio as sp
from snakepit_trio.cli import build, mcp, runs
from snakepit_trio.control import client as control
from snakepit_trio.errors import ToolError, WorkerStartupError


def spec(name: str, *, streaming: bool = False, parameters: Any = None, result: Any = None) -> Any:
    return SimpleNamespace(
        name=name, description=f"does {name}", streaming=streaming, idempotent=True, critical=False, metadata={},
        parameters_schema=json.dumps(parameters or {}), result_schema=json.dumps(result or {}),
    )  # fmt: skip


class Pool:
    """Doubles ``n``; what is negative fails."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.specs: tuple[Any, ...] = (
            spec("double", parameters={"properties": {"n": {"type": "integer"}}, "required": ["n"]}, result={"type": "integer"}),
            spec("count", streaming=True, result={"type": "integer"}),
        )  # fmt: skip

    def tools(self) -> Any:
        return self.specs

    def result(self, arguments: Any) -> Any:
        if arguments is None or arguments.get("n", 0) < 0:
            return ToolError("too small", details={"remote_types": ["a.B"]})
        return {"twice": 2 * arguments.get("n", 0)}

    async def execute(self, tool: str, arguments: Any, **options: Any) -> Any:
        self.asked.append((tool, arguments, options))
        found = self.result(arguments)
        if isinstance(found, Exception):
            raise found
        return found

    @asynccontextmanager
    async def stream(self, tool: str, arguments: Any, **options: Any) -> Any:
        self.asked.append((tool, arguments, options))

        async def chunks() -> Any:
            for n in range(3):
                yield n

        yield chunks()

    @asynccontextmanager
    async def map(self, tool: str, params: Any, **options: Any) -> Any:
        self.asked.append((tool, options))
        results = SimpleNamespace(index=-1)

        class Results:
            index = -1

            async def __aiter__(self) -> Any:
                for value in params:
                    self.index += 1
                    yield pool.result(value)

        pool, results = self, Results()
        yield results


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    made = Pool()

    @asynccontextmanager
    async def open_pool(adapter: str, **options: Any) -> Any:
        made.asked.append((adapter, options))
        if adapter == "broken":
            raise WorkerStartupError("no module", details={"stderr": "Traceback"})
        yield made

    monkeypatch.setattr(sp, "open_pool", open_pool)
    return made


def ran(*words: str) -> Any:
    return CliRunner().invoke(build(), list(words))


# ---- call ----------------------------------------------------------------------------------------------


def test_one_call(pool: Pool) -> None:
    result = ran("call", "a", "double", '{"n": 2}')
    assert (result.exit_code, result.stdout) == (0, '{\n  "twice": 4\n}\n')
    assert pool.asked == [("a", {"size": 1}), ("double", {"n": 2}, {})]
    result = ran("call", "a", "double", '{"n": 2}', "--json", "--timeout", "1.5")
    assert (result.exit_code, result.stdout) == (0, '{"twice":4}\n') and pool.asked[-1][2] == {"timeout": 1.5}
    assert ran("call", "a", "double").exit_code == 0 and pool.asked[-1][1] == {}
    result = ran("call", "a", "count")
    assert (result.exit_code, result.stdout) == (0, "0\n1\n2\n")


def test_one_call_that_fails(pool: Pool) -> None:
    result = ran("call", "a", "double", '{"n": -2}')
    assert result.exit_code == 1 and "too small" in result.stderr and not result.stdout
    result = ran("call", "a", "double", '{"n": -2}', "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["error"]["message"] == "too small"
    assert json.loads(result.stdout)["error"]["code"] == "tool_error"
    assert ran("call", "broken", "double").exit_code == 2
    result = ran("call", "broken", "double", "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["stderr"] == "Traceback"


@pytest.mark.parametrize(
    "words",
    [("a",), ("a", "t", "{}", "x"), ("a", "t", "{"), ("a", "t", "[]"), ("--address", "unix:/x"), ("--address", "unix:/x", "t", "{}", "x")],
)  # fmt: skip
def test_one_call_that_can_not_be_meant(pool: Pool, words: tuple[str, ...]) -> None:
    if words == ("--address", "unix:/x"):
        assert ran("call", *words).exit_code == 2  # The words are needed.
        return
    result = ran("call", *words)
    assert result.exit_code == 2 and result.stderr.startswith("snakepit: ")
    result = ran("call", *words, "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["error"]["code"] == "invalid_parameter"
    assert not pool.asked


# ---- map -----------------------------------------------------------------------------------------------


def test_a_line_for_each_file(pool: Pool, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("3", "-1", "5", "-2", "x")]
    for path in paths:
        path.touch()
    result = ran("map", "a", "double", *map(str, paths), "--param", "n={name}")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["index"] for line in lines] == list(range(5)) and [line["input"] for line in lines] == list(
        map(str, paths)
    )
    assert [line.get("result") for line in lines] == [{"twice": 6}, None, {"twice": 10}, None, None]
    assert [line.get("error", {}).get("code") for line in lines] == [
        None,
        "tool_error",
        None,
        "tool_error",
        "tool_error",
    ]
    # What is no input fails for that reason, whatever the tool makes of nothing.
    assert (
        lines[4]["error"]["message"] == "n: expected integer as JSON, got 'x'"
        and lines[1]["error"]["message"] == "too small"
    )
    assert result.exit_code == 1 and result.stderr == "snakepit: 3 of 5 inputs failed\n"
    result = ran("map", "a", "double", str(paths[0]), "--param", "n={name}")
    assert (result.exit_code, result.stderr) == (0, "")
    assert pool.asked[-1][1]["idempotent"] is None and pool.asked[-1][1]["return_errors"] is True
    assert pool.asked[0] == ("a", {})


def test_what_can_not_be_mapped(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    result = ran("map", "a", "count", str(tmp_path / "f"))
    assert result.exit_code == 2 and "is a streaming tool" in result.stderr
    result = ran("map", "a", "none", str(tmp_path / "f"))
    assert result.exit_code == 2 and "has no tool 'none'; it has double, count" in result.stderr
    result = ran("map", "a", "double", str(tmp_path / "nothing"))
    assert result.exit_code == 2 and "no such file" in result.stderr
    result = ran("map", "a", "double", str(tmp_path / "f"), "--param", "n=x")
    assert result.exit_code == 2 and "--param n=x" in result.stderr


# ---- tools ---------------------------------------------------------------------------------------------


def test_a_table_of_tools(pool: Pool) -> None:
    result = ran("tools", "a")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in result.stdout.splitlines()]
    assert rows == [
        ["tool", "parameters", "gives", "description"], ["double", "n: integer", "integer", "does double"],
        ["count", "stream of integer", "does count"],
    ]  # fmt: skip
    told = json.loads(ran("tools", "a", "--json").stdout)
    assert [(one["name"], one["streaming"], one["idempotent"], one["critical"]) for one in told] == [
        ("double", False, True, False), ("count", True, True, False),
    ]  # fmt: skip


# ---- new -----------------------------------------------------------------------------------------------


def test_a_new_adapter(tmp_path: Path) -> None:
    result = ran("new", "my_tools", "--directory", str(tmp_path / "below"), "--json")
    place = tmp_path / "below" / "my_tools"
    assert json.loads(result.stdout) == {
        "directory": str(place), "files": ["my_tools.py", "snakepit.toml", "test_my_tools.py"], "adapter": "my_tools:MyTools",
    }  # fmt: skip
    assert sorted(os.listdir(place)) == json.loads(result.stdout)["files"] and os.listdir(tmp_path / "below") == [
        "my_tools"
    ]
    mask = os.umask(0)
    os.umask(mask)
    assert place.stat().st_mode & 0o777 == 0o777 & ~mask
    texts = "".join(file.read_text() for file in place.iterdir())
    assert "class MyTools(sp.Adapter)" in texts and "SNAKEPIT_POOLS__MY_TOOLS__SIZE" in texts
    assert not [word for word in ("@name@", "@pool@", "@POOL@", "@Class@") if word in texts]
    result = ran("new", "my_tools", "--directory", str(tmp_path / "below"))
    assert result.exit_code == 1 and "already exists" in result.stderr
    for name in ("1a", "a-b", "class", "_a", "\u00e9", "json", "snakepit_trio", ""):
        assert ran("new", name, "--directory", str(tmp_path)).exit_code == 2
    (tmp_path / "file").touch()
    result = ran("new", "other", "--directory", str(tmp_path / "file"))
    assert result.exit_code == 1 and "can't make" in result.stderr


# ---- worker, resize ------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    workers = [[{"id": "ab-1"}, {"id": "ac-2"}], [{"id": "b-3"}]]

    class Client:
        async def ask(self, op: str, **fields: Any) -> Any:
            found.append((op, fields))
            if op == "status":
                return {"pools": [{"workers": each} for each in workers]}
            if "pool" in fields:
                fields["pool"] = fields["pool"] or "the only one"
            return {**fields, "replaced": fields.get("worker") != "b-3"}

    @asynccontextmanager
    async def connect(path: str) -> Any:
        assert path == "/control"
        yield Client()

    monkeypatch.setattr(control, "connect", connect)
    monkeypatch.setattr(runs, "choose", lambda state_dir, run_id: SimpleNamespace(control="/control"))
    return found


def test_what_an_operator_does_to_a_worker(asked: list[Any]) -> None:
    result = ran("worker", "drain", "ab", "--timeout", "7")
    assert (result.exit_code, result.stdout) == (0, "drain of worker ab-1: done\n")
    assert asked[-1] == ("drain", {"timeout": 12.0, "worker": "ab-1", "timeout_seconds": 7.0})
    result = ran("worker", "cordon", "ac-2", "--json")
    assert json.loads(result.stdout)["worker"] == "ac-2"
    assert asked[-1] == ("cordon", {"timeout": 65.0, "worker": "ac-2"})
    result = ran("worker", "restart", "b")
    assert result.exit_code == 1 and "continues: its replacement could not start" in result.stderr
    for beginning, said in (("a", "2 workers have an id"), ("x", "no workers have an id")):
        result = ran("worker", "kill", beginning)
        assert result.exit_code == 1 and said in result.stderr and asked[-1][0] == "status"


def test_what_an_operator_does_to_a_pool(asked: list[Any]) -> None:
    result = ran("resize", "3")
    assert (result.exit_code, result.stdout) == (0, "pool the only one has 3 workers\n")
    assert [op for op, _ in asked] == ["resize"] and asked[0][1]["size"] == 3
    assert ran("resize", "0").exit_code == 2 and ran("resize", "1", "--pool", "p").stdout == "pool p has 1 workers\n"


# ---- mcp -----------------------------------------------------------------------------------------------


def test_the_token_of_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t"
    path.write_text(" secret\n")
    monkeypatch.setenv(mcp.TOKEN, "other")
    assert mcp._token(path) == "secret" and mcp._token(None) == "other"
    # What tools start is not to have it.
    assert mcp.TOKEN not in os.environ and capsys.readouterr().err == ""
    made = mcp._token(None)
    assert len(made) >= 40 and capsys.readouterr().err == f"snakepit: clients send: authorization: Bearer {made}\n"
    path.write_text(" \n")
    for wrong in (path, tmp_path / "none", tmp_path):
        with pytest.raises(typer.Exit) as refused:
            mcp._token(wrong)
        assert refused.value.exit_code == 2
