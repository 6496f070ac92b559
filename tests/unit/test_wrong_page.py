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


def test_each_text_is_one_that_the_library_says() -> None:
    sources = "".join(path.read_text() for path in sorted((PAGE.parents[1] / "snakepit_trio").rglob("*.py")))
    sources = re.sub(r'"\n\s*f?"', "", sources)
    # Of these classes, others say the text: the tool, and Python's import.
    own = re.sub(r"## `(ToolError|WorkerStartupError)`.*?(?=\n## )", "", PAGE.read_text(), flags=re.DOTALL)
    texts = [text for line in re.findall(r"^Text: (.*)$", own, re.MULTILINE) for text in re.findall(r"`([^`]+)`", line)]
    assert len(texts) > 10
    for text in texts:
        # The longest part that holds no value.
        values = r"'[^']*'|=?\d+|\([^)]*\)|\.\.\.|\bbytes of\b|add: params\[\"a\"\]|int, got str|was (?:running|queued) when timeout|sise: |PoolConfig.*|if __name__.*|ended the request; "
        part = max(re.split(values, text), key=len).strip(" ;:,]")
        assert part in sources, (part, text)
