"""The documents' code does what they say; :mod:`tests.documents` has the rules."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, Block, Page, matches, pages

PAGES = pages()
RUNNABLE = ("python", "console", "toml")


def run(command: list[str] | str, cwd: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}", "COLUMNS": "100", "NO_COLOR": "1"}
    if isinstance(command, str):
        # The commands of this checkout, whatever is on the path.
        snakepit, python = f"{shlex.quote(sys.executable)} -m snakepit_trio", shlex.quote(sys.executable)
        functions = f'snakepit() {{ {snakepit} "$@"; }}; python() {{ {python} "$@"; }}; set -e -o pipefail; '
        command = ["bash", "-c", functions + command]
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def write_files(page: Page, place: Path) -> None:
    for block in page.blocks:
        if block.name:
            (place / block.name).parent.mkdir(parents=True, exist_ok=True)
            (place / block.name).write_text(block.text)


@pytest.mark.timeout(600)  # A page has many programs, each with a limit of its own.
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_every_block_runs(page: Page, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    for block in page.blocks:
        if block.language in RUNNABLE and not block.excuse:
            run_block(page, block, tmp_path)


def run_block(page: Page, block: Block, place: Path) -> None:
    where = f"{page.path}:{block.line}"
    if block.language == "console":
        assert block.commands(), f"{where}: no line begins with '$ '"
        for command, expected in block.commands():
            printed = run(command, place)
            assert matches(expected, printed), f"{where}: {command!r} printed\n{printed}"
    elif block.name is None:
        pytest.fail(f"{where}: this {block.language} block is not run; name it, or say why it is not")
    elif block.expected is not None:
        printed = run([sys.executable, block.name], place)
        assert matches(block.expected, printed), f"{where}: {block.name} printed\n{printed}"
    elif block.language == "python":
        run([sys.executable, "-c", f"import {block.name.removesuffix('.py').replace('/', '.')}"], place)
    elif Path(block.name).name.startswith("snakepit"):
        load = f"import snakepit_trio as sp; sp.RuntimeConfig.load({block.name!r}, environ={{}})"
        run([sys.executable, "-c", load], place)


def test_the_readmes_program_runs_on_asyncio_too(tmp_path: Path) -> None:
    write_files(PAGES[0], tmp_path)
    main = tmp_path / "main.py"
    main.write_text(main.read_text().replace('backend="trio"', 'backend="asyncio"'))
    assert run([sys.executable, "main.py"], tmp_path).startswith("3\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_every_link_leads_somewhere(page: Page) -> None:
    prose = re.sub(r"```.*?```", "", page.text, flags=re.DOTALL)
    for name in re.findall(r"\]\((?!\w+:)([^)#]+)(?:#[^)]*)?\)", prose):
        assert ((ROOT / page.path).parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_every_test_that_is_named_exists(page: Page) -> None:
    for name, function in re.findall(r"`(?:tests/\w+/)?(test_[a-z0-9_]+\.py)(?:::(\w+))?`", page.text):
        texts = [path.read_text() for path in (ROOT / "tests").rglob(name)]
        assert texts, name
        assert not function or any(f"def {function}(" in text for text in texts), f"{name}::{function}"


def test_what_stands_for_anything() -> None:
    assert matches("a\n...\nd ... f", "a\nb\nc\nd e f")
    assert matches("a\n...", "a")
    assert not matches("a\nb", "a\nc")
    assert not matches("a", "a\nb")
