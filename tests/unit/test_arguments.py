"""Arguments on the command line: what a word's value becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snakepit_trio.cli.arguments import read_arguments

SCHEMA = json.dumps(
    {
        "properties": {
            "name": {"type": "string"},
            "path": {"type": "string", "format": "path"},
            "count": {"type": "integer"},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "rows": {"type": "array"},
        }
    }
)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (['{"count": 1, "name": "=x"}'], {"count": 1, "name": "=x"}),
        (["count=3"], {"count": 3}),
        (["name=3", "path=007"], {"name": "3", "path": "007"}),
        (["name={}", "name2=a=b"], {"name": "{}", "name2": "a=b"}),
        (["either=3"], {"either": 3}),
        (["either=three"], {"either": "three"}),
        (["either="], {"either": ""}),
        (["rows=[1, 2]"], {"rows": [1, 2]}),
        (["name=two\nlines"], {"name": "two\nlines"}),
        (["other=true"], {"other": True}),
        # Too deep to be JSON.
        (["other=" + "[" * 100_000], {"other": "[" * 100_000}),
    ],
)
def test_what_is_read(words: list[str], arguments: dict[str, Any]) -> None:
    assert read_arguments(words).for_tool(SCHEMA) == arguments


def test_an_unknown_tool_has_no_schema() -> None:
    assert read_arguments(["name=3"]).for_tool(None) == {"name": 3}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["{"], "not JSON, nor KEY=VALUE"),
        (["[" * 100_000], "not JSON, nor KEY=VALUE"),
        (["[]"], "must be a JSON object, or words KEY=VALUE"),
        (["1=2"], "not JSON, nor KEY=VALUE"),
        (["count=1", "{}"], "expected one JSON object, or words KEY=VALUE, got '{}'"),
        (["count=1", "count=2"], "count is given twice"),
        (["count=1", "--fast"], "got '--fast'"),
    ],
)
def test_what_is_refused(words: list[str], text: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_arguments(words)
    assert text in str(caught.value)
