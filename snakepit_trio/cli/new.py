"""``snakepit new``: create an adapter with tests and a configuration, all runnable."""

from __future__ import annotations

import keyword
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from snakepit_trio.observe.printable import printable

from .common import FAILED, UNUSABLE, fail, to_json

__all__ = ["new"]

_ADAPTER = '''\
"""Tools that run in worker processes. Each public method marked with @sp.tool is one."""

from __future__ import annotations

from collections.abc import Iterator

import snakepit_trio as sp


class @Class@(sp.Adapter):
    def setup(self) -> None:
        """Once in each worker process, before its first call: load models, open connections."""
        self.greeting = "Hello"

    @sp.tool(idempotent=True)
    def greet(self, name: str) -> str:
        """Greet somebody. Idempotent: when its worker dies, the call runs again in another."""
        return f"{self.greeting}, {name}!"

    @sp.tool
    def count(self, n: int) -> Iterator[int]:
        """Count to n: a generator is a stream."""
        yield from range(1, n + 1)

    @sp.tool
    def where(self, ctx: sp.ToolContext) -> str:
        """Which worker is this? A parameter annotated ToolContext is filled in, and is no argument of the tool."""
        return ctx.worker_id
'''
_TEST = '''\
"""Run with pytest; the fixtures come with snakepit_trio."""

from __future__ import annotations

from pathlib import Path

import pytest

import snakepit_trio as sp

pytestmark = [pytest.mark.anyio, pytest.mark.snakepit_pool("@name@:@Class@")]


async def test_greet(snakepit_pool: sp.Pool) -> None:
    assert await snakepit_pool.execute("greet", {"name": "you"}) == "Hello, you!"


async def test_arguments_are_checked(snakepit_pool: sp.Pool) -> None:
    with pytest.raises(sp.InvalidParameter):
        await snakepit_pool.execute("greet", {"name": 1})


async def test_count(snakepit_pool: sp.Pool) -> None:
    async with snakepit_pool.stream("count", {"n": 3}) as chunks:
        assert [chunk async for chunk in chunks] == [1, 2, 3]


async def test_the_configuration(tmp_path: Path) -> None:
    config = sp.RuntimeConfig.load(Path(__file__).with_name("snakepit.toml"), environ={"SNAKEPIT_STATE_DIR": str(tmp_path)})
    async with sp.open_runtime(config) as runtime:
        assert await runtime.pool("@pool@").execute("where")
'''
_CONFIG = """\
# Read by sp.RuntimeConfig.load("snakepit.toml"). Every option: docs/reference/configuration.md.
# The environment goes before it: SNAKEPIT_POOLS__@POOL@__SIZE=8.

[[pools]]
name = "@pool@"
adapter = "@name@:@Class@"
size = 2
timeout = 30.0
"""


def new(
    name: Annotated[
        str, typer.Argument(help="The name of the adapter's module and of the new directory, a Python name.")
    ],
    directory: Annotated[Path, typer.Option(help="The parent of the new directory.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Create a directory with an adapter, its tests and its configuration. The tests pass as created.

    Existing files are never changed.
    """
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name.startswith("_"):
        fail(f"{name!r} can't be the name of an adapter: expected a Python name such as my_tools", UNUSABLE)
    if _is_importable(name):
        fail(f"{name!r} is already a module of Python: choose another name", UNUSABLE)
    target = directory / name
    if target.exists():
        fail(f"{target} already exists", FAILED)
    words = {
        "@name@": name,
        "@pool@": name[:64],
        "@POOL@": name[:64].upper(),
        "@Class@": "".join(part[:1].upper() + part[1:] for part in name.split("_") if part) or "Tools",
    }
    files = {f"{name}.py": _ADAPTER, f"test_{name}.py": _TEST, "snakepit.toml": _CONFIG}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # The directory is created elsewhere and moved into place, so it exists completely or not at all.
        place = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory))
        try:
            place.chmod(0o777 & ~_umask())
            for file, text in files.items():
                for word, value in words.items():
                    text = text.replace(word, value)
                (place / file).write_text(text)
            place.rename(target)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    except OSError as exc:
        fail(f"can't make {target}: {exc.strerror}", FAILED)
    if as_json:
        print(to_json({"directory": str(target), "files": sorted(files), "adapter": f"{name}:{words['@Class@']}"}))
        return
    print(printable(f"made {target}: {', '.join(files)}"))
    print(
        printable(f'try: cd {target} && pytest && snakepit call {name}:{words["@Class@"]} greet \'{{"name": "you"}}\'')
    )


def _is_importable(name: str) -> bool:
    import sys

    return name in sys.stdlib_module_names or name == "snakepit_trio"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
