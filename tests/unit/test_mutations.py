"""The breakages of ``tests/mutation``: where they are made, and that those by hand still fit the code."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

from tests.mutation.mutants import mutants_of, sample
from tests.mutation.rooms import OTHERS, ROOMS, files_for, room_of
from tests.mutation.trying import PACKAGE, ROOT

SOURCE = '''
"""Text with 1 + 1 < 3 in it."""
from typing import TYPE_CHECKING
if TYPE_CHECKING or 1 < 2:
    pass
x: list[int] | None = f(1)
def f(a: "1 < 2" = True, *, b: int = 40) -> bool:
    assert a == b
    if a and not b:
        return a <= b + 2
    return [c for c in (a, b) if c is  not None]
class T(TypedDict, total=False): ...
'''


def test_what_is_broken_and_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(SOURCE)
    source = SOURCE.encode()
    found = mutants_of(tmp_path, "m.py")
    assert all(ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source)) for mutant in found)
    assert {(mutant.kind, mutant.diff(source).splitlines()[-1][1:].strip()) for mutant in found} >= {
        ("constant", "x: list[int] | None = f(2)"),
        ("constant", 'def f(a: "1 < 2" = False, *, b: int = 40) -> bool:'),
        ("constant", 'def f(a: "1 < 2" = True, *, b: int = 400) -> bool:'),
        ("and to or", "if a or not b:"),
        ("not dropped", "if a and bool(b):"),
        ("condition negated", "if not (a and not b):"),
        ("part of a condition dropped", "if ((a)):"),
        ("comparison", "return a < b + 2"),
        ("operator", "return a <= b - 2"),
        ("comparison", "return [c for c in (a, b) if c is None]"),
    }
    assert not {mutant.line for mutant in found} & {2, 3, 4, 8, 12}


def test_a_sample_is_spread_over_all_rooms_and_can_be_had_again() -> None:
    rooms: dict[str, list[str]] = {}
    for file in (ROOT / PACKAGE).rglob("*.py"):
        path = str(file.relative_to(ROOT / PACKAGE))
        if (room := room_of(path)) is not None:
            rooms.setdefault(room, []).append(path)
    assert rooms.keys() == ROOMS.keys()
    rooms = {room: sorted(paths) for room, paths in rooms.items()}
    once, again = (list(sample(ROOT / PACKAGE, rooms, 20, 3)) for _ in range(2))
    assert once == again
    assert {room_of(mutant.path) for mutant in once} == ROOMS.keys()


def test_each_room_has_its_tests() -> None:
    assert not [test for path in (*ROOMS, *OTHERS) for test in files_for(path) if not (ROOT / test).exists()]


@pytest.mark.parametrize("name", ["breakages", "equivalent"])
def test_what_is_written_down_fits_the_code(name: str) -> None:
    for one in tomllib.loads((ROOT / f"tests/mutation/{name}.toml").read_text()).get("breakage", []):
        source = (ROOT / PACKAGE / one["file"]).read_text()
        assert source.count(one["old"]) == 1 or (name == "equivalent" and one["old"] in source), one
        assert all((ROOT / test.partition("::")[0]).exists() for test in one.get("tests", [])), one
