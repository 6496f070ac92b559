"""What is said of an adapter that is not what it should be."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

import snakepit_trio as sp
from snakepit_trio.wire.failures import describe_exception
from snakepit_trio.worker.adapter import load_adapter
from snakepit_trio.worker.toolbox import find_tools


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
    with pytest.raises(sp.ConfigError, match=r"@snakepit_trio\.tool$"):
        find_tools(ModuleType("nothing"))


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
