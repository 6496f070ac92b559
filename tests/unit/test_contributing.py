"""What CONTRIBUTING.md names is there, and the project's files say one thing each in one place."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import snakepit_trio

ROOT = Path(__file__).parents[2]
PATH = re.compile(r"`((?:snakepit_trio|tests|docs|protos|benchmarks|\.ci)/[\w./-]+)`")
SESSION = re.compile(r"nox -s ((?:[a-z]+ ?)+)")


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return found


def sessions() -> set[str]:
    """Those of the nox file, which needs nox to be run."""
    found = ast.parse((ROOT / "noxfile.py").read_text()).body
    return {node.name for node in found if isinstance(node, ast.FunctionDef) and node.decorator_list}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "README.md"])
def test_what_is_named_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    assert [path for path in PATH.findall(text) if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "page",
    ["CONTRIBUTING.md", "README.md", ".github/workflows/ci.yml", ".github/workflows/dependencies.yml", ".ci/run"],
)
def test_each_nox_session_that_is_named_is_there(page: str) -> None:
    named = {name for names in SESSION.findall((ROOT / page).read_text()) for name in names.split()}
    assert named - sessions() <= {"force"}
    assert named or page.endswith("dependencies.yml")


def test_the_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert snakepit_trio.__version__ not in re.findall(r'^version = "(.*)"$', text, re.MULTILINE)
    assert 'dynamic = ["version"]' in text
    assert 'path = "snakepit_trio/__init__.py"' in text


def test_what_is_used_by_its_inner_names_has_an_upper_bound() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("h2", "hpack", "hyperframe", "grpclib", "betterproto2"):
        (found,) = [req for req in required if re.match(rf"{name}\b", req)]
        assert "<" in found
