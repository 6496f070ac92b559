"""How the documents' code is run.

A page's fenced blocks are read in order; each page has a directory of its own.

- A ``python``, ``toml``, ``js``, ``proto`` or ``json`` block whose first line is a comment with a file's name (``# sums.py``,
  ``// worker.js``) is written there.
- A ``text`` block right after a named ``python`` block is what ``python NAME`` prints. A line ``...`` in it stands for any
  lines, ``...`` within a line for any characters.
- A ``console`` block holds commands after ``$ ``, each with what it prints, by the same rule.
- A named ``python`` block that is not run in this way is imported; a ``snakepit*.toml`` is loaded.
- Any other ``python``, ``console`` or ``toml`` block needs ``<!-- not run: REASON -->`` on the line before it.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

__all__ = ["ROOT", "Block", "Page", "matches", "pages"]

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"(?:#|//) ([\w./-]+\.\w+)\n")
_EXCUSE = re.compile(r"<!-- not run: ([^>]+) -->\s*\Z")


@attrs.frozen
class Block:
    """One fenced block.

    Attributes:
        name: The file that it is; None when it is none.
        expected: What it prints; None when nothing is said about it.
        excuse: Why it is not run; None when it is.
    """

    language: str
    text: str
    line: int
    name: str | None
    expected: str | None
    excuse: str | None

    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with what it prints."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        found = []
        for part in parts:
            command, _, output = part.partition("\n")
            while command.endswith("\\"):
                more, _, output = output.partition("\n")
                command = command[:-1] + more.strip()
            found.append((command, output))
        return found


@attrs.frozen
class Page:
    """A document.

    Attributes:
        path: Relative to the checkout.
        blocks: Its fenced blocks, in order.
    """

    path: str
    text: str
    blocks: tuple[Block, ...]


def read_page(path: Path) -> Page:
    """Read a document's blocks."""
    text = path.read_text()
    found = list(_FENCE.finditer(text))
    blocks = []
    for position, match in enumerate(found):
        indent, language, body = match[1], match[3], match[4]
        if indent:
            body = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        following = found[position + 1] if position + 1 < len(found) else None
        # Whatever is said between them, a text block that comes next is the output.
        adjacent = (
            following is not None and following[3] == "text" and "\n#" not in text[match.end() : following.start()]
        )
        name = _NAME.match(body)
        excuse = _EXCUSE.search(text, 0, match.start())
        blocks.append(
            Block(
                language=language,
                text=body,
                line=text.count("\n", 0, match.start()) + 1,
                name=name[1] if name and language in ("python", "toml", "js", "proto", "json") else None,
                expected=following[4] if adjacent and following is not None and language == "python" else None,
                excuse=excuse[1] if excuse else None,
            )
        )
    return Page(str(path.relative_to(ROOT)), text, tuple(blocks))


def pages() -> list[Page]:
    """The README and everything under docs/."""
    return [read_page(path) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]


def matches(expected: str, printed: str) -> bool:
    """Whether an output is what was said, ``...`` standing for anything."""
    pattern = ""
    for line in expected.strip("\n").split("\n"):
        if line.strip() == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[^\n]*?".join(re.escape(part) for part in line.split("...")) + r" *\n"
    return re.fullmatch(pattern, printed.strip("\n") + "\n") is not None
