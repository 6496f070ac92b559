"""The page "When something goes wrong" has an entry for each error and each code."""

from __future__ import annotations

import re
from pathlib import Path

from snakepit_trio import errors

PAGE = Path(__file__).parents[2] / "docs" / "when-something-goes-wrong.md"


def test_each_class_and_code_has_its_entry() -> None:
    text = PAGE.read_text()
    told = dict(re.findall(r"^## `(\w+)` \(`(\w+)`\)$", text, re.MULTILINE))
    classes = [getattr(errors, name) for name in errors.__all__ if name != "remote"]
    assert told == {cls.__name__: cls.default_code for cls in classes}
    alone = set(re.findall(r"^## `(\w+)`$", text, re.MULTILINE))
    assert alone | set(told.values()) == set(errors.GRPC_STATUS)


def test_each_entry_says_something() -> None:
    for entry in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        assert len(entry.partition("\n")[2].strip()) > 60, entry
