"""A pool over a launcher that is no part of the package, with real processes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio.launchers import SpawnLauncher, WorkerProcess, WorkerSpec

pytestmark = pytest.mark.anyio

BASIC = "tests.adapters.basic"

BROUGHT = '''
import attrs

from snakepit_trio.launchers import LaunchContext, SpawnLauncher, WorkerProcess, WorkerSpec


class Marked(SpawnLauncher):
    """Tells its workers who has started them."""

    def __init__(self, context: LaunchContext) -> None:
        super().__init__(context.book)
        self._name = f"{context.config.launcher} for {context.most_workers}"

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        return await super().start(attrs.evolve(spec, env={**spec.env, "STARTED_BY": self._name}))
'''


async def test_by_the_name_that_a_distribution_has_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "snakepit_marked-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: snakepit-marked\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[snakepit_trio.launchers]\nmarked = brought_launcher:Marked\n")
    (tmp_path / "brought_launcher.py").write_text(BROUGHT)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "brought_launcher", raising=False)
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, launcher="marked") as pool:
            assert await pool.execute("environment", {"name": "STARTED_BY"}) == "marked for 2"


class Delegating:
    """A launcher by its members alone, around another."""

    same_machine = True

    def __init__(self) -> None:
        self.inner = SpawnLauncher()
        self.started: list[WorkerProcess] = []
        self.open = False

    async def __aenter__(self) -> None:
        await self.inner.__aenter__()
        self.open = True

    async def __aexit__(self, *exc: Any) -> None:
        self.open = False
        await self.inner.__aexit__(*exc)

    async def start(self, spec: WorkerSpec) -> WorkerProcess:
        assert self.open
        self.started.append(await self.inner.start(spec))
        return self.started[-1]


async def test_an_object_is_opened_again_whenever_its_pool_is() -> None:
    own: Any = Delegating()
    config = sp.RuntimeConfig(pools=[sp.PoolConfig(adapter=BASIC, size=1, launcher=own)])
    with anyio.fail_after(60):
        for count in (1, 2):
            async with sp.open_runtime(config) as runtime:
                pool = runtime.pool()
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                assert len(own.started) == count and own.started[-1].pid == pool.workers()[0].pid
            assert not own.open and all(process.ended for process in own.started)
