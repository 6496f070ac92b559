"""How the workers of a pool are started."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio.config import RayConfig
from snakepit_trio.launch import choice
from snakepit_trio.launch.command import CommandLauncher
from snakepit_trio.launch.fork_server import ForkServerLauncher
from snakepit_trio.launch.spawn import SpawnLauncher

RUN: Any = SimpleNamespace(run_id="r", run_dir="/nowhere")


def test_on_this_machine() -> None:
    def chosen(**options: Any) -> Any:
        return choice.launcher_for(sp.PoolConfig(**options), RUN, str)

    assert type(chosen(adapter="m", start_method="spawn")) is SpawnLauncher
    assert type(chosen(adapter="m", start_method="fork_server")) is ForkServerLauncher
    assert type(chosen(command=["program"])) is CommandLauncher


@pytest.mark.parametrize(
    ("options", "most"),
    [({"size": 3}, 4), ({"size": 3, "surge": 2, "spares": 4}, 9), ({"size": 2, "max_size": 7, "min_size": 1}, 8)],
)
def test_a_cluster_is_asked_for_as_many_as_there_may_be_at_once(
    options: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    fake = SimpleNamespace(ray_launcher=lambda context: made.append(context) or SpawnLauncher())
    monkeypatch.setitem(sys.modules, "snakepit_trio.launch.ray_workers", fake)
    config = sp.PoolConfig(adapter="m", launcher="ray", **options)
    choice.launcher_for(config, RUN, str)
    [context] = made
    assert (context.most_workers, context.run_id, context.config) == (most, "r", config)
    assert isinstance(config.ray, RayConfig)


def test_a_cluster_without_ray_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snakepit_trio.launch.ray_workers", None)
    with pytest.raises(sp.ConfigError, match=r"snakepit-trio\[ray\]"):
        choice.launcher_for(sp.PoolConfig(adapter="m", launcher="ray"), RUN, str)
