"""The page of the commands is made from the commands."""

from __future__ import annotations

from pathlib import Path

from snakepit_trio.cli.reference import document

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"


def test_the_page_of_commands_is_what_they_say() -> None:
    assert PAGE.read_text() == document(), "python -m snakepit_trio.cli.reference > docs/commands.md"
