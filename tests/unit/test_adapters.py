"""What is said of an adapter that is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio.wire.failures import describe_exception
from snakepit_trio.worker.adapter import ToolOptions, load_adapter
from snakepit_trio.worker.toolbox import Kind, Tool, find_tools


def trace_of(error: BaseException) -> str:
    """What a worker reports of it: there, no test stands above what raised."""
    assert error.__traceback__ is not None
    return describe_exception(error.with_traceback(error.__traceback__.tb_next), redact=str).remote_traceback


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Plain'; its adapters: 'tests.adapters.classy:Plane'"):
        load_adapter("tests.adapters.classy:Plain")
    with pytest.raises(AttributeError, match=r"has no attribute 'Plain'$"):
        load_adapter("tests.adapters.basic:Plain")


def test_a_module_whose_tools_are_a_classs() -> None:
    module, target = load_adapter("tests.adapters.classy")
    assert module is target
    with pytest.raises(sp.ConfigError, match=r"@snakepit_trio\.tool; it has adapters: tests.adapters.classy:Plane"):
        find_tools(target)
    with pytest.raises(sp.ConfigError, match=r"adapter 'nothing' has no tools.*@snakepit_trio\.tool$"):
        find_tools(ModuleType("nothing"))
    with pytest.raises(sp.ConfigError, match=r"adapter 'tests.unit.test_adapters:_Empty' has no tools"):
        find_tools(_Empty())


@pytest.mark.parametrize("future", ["from __future__ import annotations\n", ""])
def test_names_that_only_a_type_checker_has(future: str) -> None:
    code = f"""{future}
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from collections.abc import Iterator
    from nowhere import Thing
    from snakepit_trio import ToolContext
def plain(a: int, thing: "Thing", ctx: "ToolContext", more: "list[int] | None" = None) -> "Thing": ...
def stream(n: int) -> "Iterator[int]": ...
"""
    space: dict[str, Any] = {}
    exec(code, space)
    plain, stream = (Tool(space[name], ToolOptions(name, "", critical=False)) for name in ("plain", "stream"))
    assert json.loads(plain.parameters_schema)["properties"] == {
        "a": {"type": "integer"},
        "thing": {},
        "more": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]},
    }
    assert plain.takes_context
    assert plain.bind({"a": 1, "thing": {"any": "thing"}}, None)[0] == [1, {"any": "thing"}, None, None]
    with pytest.raises(sp.InvalidParameter, match=r'params\["a"\]: expected int'):
        plain.bind({"a": "x", "thing": 0}, None)
    assert stream.kind is Kind.GENERATOR


class _Empty:
    pass


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        load_adapter("no_such_module.inner")
    assert trace_of(caught.value) == "ModuleNotFoundError: No module named 'no_such_module'\n"
    with pytest.raises(ModuleNotFoundError, match=r"write 'json', without '\.py'"):
        load_adapter("json.py")


def test_an_import_that_fails_is_shown_from_the_adapter_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "imports_nothing.py").write_text("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError) as caught:
        load_adapter("imports_nothing")
    trace = trace_of(caught.value)
    assert "imports_nothing.py" in trace
    assert "importlib" not in trace
