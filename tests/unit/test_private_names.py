"""A release of a dependency that lacks a name which is used here is met with a fallback, or with an error that says so."""

from __future__ import annotations

import ast
import contextvars
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

import snakepit_trio
from snakepit_trio import IncompatibleDependency, _private_names
from snakepit_trio._private_names import PYTHON, USES, missing, release, require
from snakepit_trio.worker.tasks import open_tasks

ROOT = Path(snakepit_trio.__file__).parent
#: Where a use is checked, when that is not the module that has it.
CHECKED_IN = {"snakepit_trio.launch.template": "snakepit_trio.launch.fork_server"}


def each_name() -> Iterator[Any]:
    for use, what in USES.items():
        for place, names in what.names.items():
            for name in names or [""]:
                yield pytest.param(use, place, name, id=f"{use}-{place}-{name}")


def remove(place: str, name: str) -> Callable[[], object]:
    """Have the dependency be as if it had never had this name; returns what undoes it."""
    module, _, kind = place.partition(":")
    undo = ExitStack()
    if not name:
        undo.callback(sys.modules.__setitem__, module, importlib.import_module(module))
        sys.modules[module] = None  # type: ignore[assignment]
        return undo.close
    owner: Any = importlib.import_module(module)
    if not kind:
        undo.callback(setattr, owner, name, getattr(owner, name))
        delattr(owner, name)
        return undo.close
    for base in getattr(owner, kind).__mro__:
        if name in vars(base):
            undo.callback(setattr, base, name, vars(base)[name])
            type.__delattr__(base, name)
        init = vars(base).get("__init__")
        code = getattr(init, "__code__", None)
        if code is not None and name in code.co_names:
            undo.callback(setattr, init, "__code__", code)
            init.__code__ = code.replace(co_names=tuple(f"new{n}" if n == name else n for n in code.co_names))
    return undo.close


@pytest.mark.parametrize("use", USES)
def test_each_is_there(use: str) -> None:
    pytest.importorskip(next(iter(USES[use].names)).partition(":")[0])
    if use == "asyncio.tasks" and sys.version_info < (3, 14):
        assert missing(use) == ["asyncio.tasks._swap_current_task"]
    else:
        assert missing(use) == []
        require(use)


@pytest.mark.parametrize(("use", "place", "name"), list(each_name()))
def test_each_is_missed(
    use: str, place: str, name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip(place.partition(":")[0])
    if use == "asyncio.tasks" and sys.version_info < (3, 14):
        pytest.skip("this Python has not got it")
    if use == "numpy":
        pytest.skip("a class of C's, from which nothing can be taken")
    request.addfinalizer(remove(place, name))
    full = f"{place.replace(':', '.')}.{name}" if name else place
    assert missing(use) == [full]
    monkeypatch.setattr(_private_names, "release", lambda use: (USES[use].distribution, "99.9"))
    with pytest.raises(IncompatibleDependency, match=r"99\.9") as caught:
        require(use)
    assert caught.value.details == {"dependency": USES[use].distribution, "version": "99.9", "missing": [full]}
    assert full in caught.value.message
    assert USES[use].where in caught.value.message


def test_a_release_is_named() -> None:
    assert release("asyncio") == (PYTHON, sys.version.split()[0])
    name, version = release("h2")
    assert name == "h2"
    assert version[0].isdigit()


@pytest.mark.parametrize("use", [use for use, what in USES.items() if not what.fallback and use != "trio"])
def test_the_module_that_needs_them_asks_when_it_is_imported(use: str) -> None:
    what = USES[use]
    place, names = next(iter(what.names.items()))
    pytest.importorskip(place.partition(":")[0])
    where = CHECKED_IN.get(what.where, what.where)
    code = (
        "import sys\nfrom tests.unit.test_private_names import remove, IncompatibleDependency, importlib\n"
        f"remove({place!r}, {names[0]!r})\n"
        f"assert {where!r} not in sys.modules\n"
        f"try:\n    importlib.import_module({where!r})\n"
        "except IncompatibleDependency as exc:\n    sys.exit(0)\nsys.exit('it was imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_loop_for_async_tools_asks_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is there without Trio, too; and Trio itself can't do without the name."""

    async def main() -> None:
        async with open_tasks("trio", contextvars.copy_context()):
            pass

    trio.run(main)
    lacking = USES["trio"]._replace(names={"trio:Nursery": ("_never_there",)})
    monkeypatch.setattr(_private_names, "USES", {**USES, "trio": lacking})
    with pytest.raises(IncompatibleDependency, match="_never_there"):
        trio.run(main)


def test_there_are_no_others() -> None:
    """Whatever private attribute the package's code reads, and does not define itself, is on the list."""
    defined: set[str] = set()
    used: dict[str, str] = {}
    for path in ROOT.rglob("*.py"):
        if "generated" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                defined.add(node.value)  # In __slots__.
            elif isinstance(node, ast.Attribute):
                used.setdefault(node.attr, str(path))
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("snakepit_trio"):
                used.update({alias.name: str(path) for alias in node.names if not node.level})
    listed = {name for what in USES.values() for names in what.names.values() for name in names}
    private = {name for name in used if name.startswith("_") and not name.endswith("__")}
    found = private - (defined - listed) - listed - ALLOWED.keys()
    assert {name: used[name] for name in found} == {}


#: Documented, whatever their names look like.
ALLOWED = {
    "_fields": "collections.namedtuple",
    "_asdict": "collections.namedtuple",
    "_replace": "collections.namedtuple",
    "_exit": "os",
    "_value_": "enum",
}
