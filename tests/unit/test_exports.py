"""The public surface is what it should be, and a worker does not pay for the host's side."""

from __future__ import annotations

import ast
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio import errors


def test_every_name_is_there_and_documented() -> None:
    for name in sp.__all__:
        assert inspect.getdoc(getattr(sp, name)), name
    assert set(errors.__all__) <= set(sp.__all__)
    assert not hasattr(sp, "nothing")


def test_static_tools_see_every_name() -> None:
    """They read the imports that are never run; ``mypy tests/typing`` checks how the names may be used."""
    (block,) = [node for node in ast.parse(inspect.getsource(sp)).body if isinstance(node, ast.If)]
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(sp.__all__)


def test_the_adapters_side_imports_nothing_of_the_host() -> None:
    code = (
        "import sys, snakepit_trio as sp\n"
        "class A(sp.Adapter):\n    @sp.tool\n    def f(self, ctx: sp.ToolContext) -> int: ...\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('anyio', 'trio', 'attrs', 'attr', 'h2', 'rich', 'typer')]\n"
        "bad += [m for m in sys.modules if m.startswith(('snakepit_trio.pool', 'snakepit_trio.supervision', 'snakepit_trio.runtime'))]\n"
        "sys.exit(repr(bad) if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_workers_server_imports_nothing_of_google() -> None:
    code = (
        "import sys\nfrom snakepit_trio.wire.http2.grpc_server import PipeServer\nimport snakepit_trio.worker.server\nPipeServer([], exit)\n"
        "sys.exit('google.protobuf' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_remote_exception_is_caught_by_its_type_and_by_its_bases() -> None:
    error = errors.tool_error(
        ("m.Mine", "builtins.KeyError", "builtins.LookupError", "builtins.Exception"), "k", "trace"
    )
    for kind in (KeyError, LookupError, Exception, "m.Mine"):
        assert isinstance(error, sp.remote(kind))
    assert not isinstance(error, sp.remote(ValueError))
    assert error.remote_type == "m.Mine"
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, sp.remote(KeyError))
    assert again.remote_message == "k"


@pytest.mark.parametrize("kind", [int, 5, None, ValueError("an instance")])
def test_only_exceptions_are_caught_by_their_type(kind: Any) -> None:
    with pytest.raises(TypeError, match="class of exceptions"):
        sp.remote(kind)


def test_every_error_has_a_code_and_a_status() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if inspect.isclass(kind):
            error = kind("text", details={"a": 1})
            assert errors.class_for_code(error.code) is kind
            assert error.code in errors.GRPC_STATUS
            assert str(pickle.loads(pickle.dumps(error))) == "text"
