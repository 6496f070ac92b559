"""An adapter that would start workers that start workers is refused, before there is a second floor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import snakepit_trio as sp

ROOT = Path(__file__).resolve().parents[2]
TOOL = """
import anyio, os, threading, trio
import snakepit_trio as sp

with open({log!r}, "a") as log:
    log.write(__name__ + "\\n")

@sp.tool
def info() -> str:
    return "hello"

async def main():
    async with sp.open_pool("{name}", size=2, start_method="{method}") as pool:
        print(await pool.execute("info"))
"""
#: What programs do below that, none of them under a guard.
PROGRAMS = {
    "plain": "anyio.run(main, backend='trio')",
    "on_asyncio": "anyio.run(main, backend='asyncio')",
    "as_a_script": "raise SystemExit(sp.run(lambda runtime: runtime.pool().execute('info'), '{name}'))",
    "in_a_nursery": """
async def nursed():
    async with anyio.create_task_group() as nursery:
        nursery.start_soon(main)
anyio.run(nursed, backend='trio')
""",
    "in_a_thread": """
threads = [threading.Thread(target=trio.run, args=(main,))]
threading.excepthook = lambda args: None
for thread in threads:
    thread.start()
    thread.join()
""",
    "and_swallow_it": """
try:
    anyio.run(main, backend='trio')
except Exception:
    print("never mind")
""",
}
GUARDED = "if __name__ == '__main__':\n    anyio.run(main, backend='trio')\n"


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["fork_server", "spawn"])
async def test_an_import_that_opens_a_pool(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log"
    pools = []
    for name, program in PROGRAMS.items():
        text = TOOL.format(name=f"tower_{name}", log=str(log), method=method) + program.format(name=f"tower_{name}")
        (tmp_path / f"tower_{name}.py").write_text(text)
        pools.append(sp.PoolConfig(name=name, adapter=f"tower_{name}", size=1, start_method=method))
    with anyio.fail_after(60), pytest.raises(sp.WorkerStartupError) as caught:
        async with sp.open_runtime(sp.RuntimeConfig(pools=pools)):
            pass
    for name in PROGRAMS:
        wanted = f"the import of the adapter 'tower_{name}' opens a pool"
        assert wanted in caught.value.message
    assert caught.value.message.count('if __name__ == "__main__"') == len(PROGRAMS)
    # Each once: what is forked from a template knows what the template has found. One with threads can't be forked.
    imported = log.read_text().split()
    assert sorted(set(imported)) == sorted(f"tower_{name}" for name in PROGRAMS)
    assert len(imported) <= len(PROGRAMS) + (method == "fork_server")
    assert "restart_limit" not in caught.value.message


@pytest.mark.parametrize("method", ["fork_server", "spawn"])
def test_a_program_that_is_its_own_adapter(method: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name, program in {"unguarded": PROGRAMS["plain"], "guarded": GUARDED}.items():
        log.write_text("")
        (tmp_path / f"{name}.py").write_text(TOOL.format(name=name, log=str(log), method=method) + program)
        ran = subprocess.run(
            [sys.executable, f"{name}.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "SNAKEPIT_STATE_DIR": str(tmp_path / "s")},
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if name == "guarded":
            assert ran.stdout == "hello\n", ran.stderr
        else:
            assert ran.returncode == 1
            assert 'if __name__ == "__main__":' in ran.stderr.splitlines()[-1]
            assert len(log.read_text().split()) <= 3


@pytest.mark.anyio
async def test_a_setup_that_opens_a_pool_of_its_own_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of another adapter is the adapter's own business, and so is one that a tool opens."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tower_setup.py").write_text(
        """
import anyio
import snakepit_trio as sp

async def open_pool(adapter):
    async with sp.open_pool(adapter, size=1) as pool:
        return await pool.execute("say")

class Tower(sp.Adapter):
    def setup(self):
        anyio.run(open_pool, "tower_setup:Tower")

    @sp.tool
    def say(self) -> str:
        return "tower"

class House(sp.Adapter):
    def setup(self):
        self.said = [anyio.run(open_pool, "tower_other")]

    @sp.tool
    def say(self) -> list:
        return [*self.said, anyio.run(open_pool, "tower_other")]
"""
    )
    (tmp_path / "tower_other.py").write_text("import snakepit_trio as sp\n@sp.tool\ndef say() -> str: return 'other'\n")
    with anyio.fail_after(60):
        with pytest.raises(
            sp.WorkerStartupError, match="the setup of the adapter 'tower_setup' opens a pool of that adapter"
        ):
            async with sp.open_pool("tower_setup:Tower", size=1):
                pass
        async with sp.open_pool("tower_setup:House", size=1) as pool:
            assert await pool.execute("say") == ["other", "other"]
