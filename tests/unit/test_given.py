"""What each is given, and what becomes of it: registries, ties, a bridge from a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from typer.testing import CliRunner

from snakepit_trio import script
from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.cli import build, serve
from snakepit_trio.config import BridgeConfig
from snakepit_trio.pool.calls import affinity
from snakepit_trio.tools.registry import ToolRegistry


@pytest.mark.anyio
async def test_who_works_on_the_rebuilding_of_a_tie() -> None:
    mine, other = cast("Any", object()), cast("Any", object())
    here = anyio.get_current_task().id
    assert not affinity._rebuilds(mine)
    token = affinity._REBUILDING.set(((other, here), (mine, here)))
    try:
        assert affinity._rebuilds(mine) and affinity._rebuilds(other) and not affinity._rebuilds(cast("Any", object()))
    finally:
        affinity._REBUILDING.reset(token)


def test_a_registry_tells_its_owner_of_what_nobody_expected() -> None:
    errors = InternalErrors()
    assert ToolRegistry(errors)._errors is errors
    assert ToolRegistry()._errors is not ToolRegistry()._errors


@pytest.mark.parametrize(
    ("table", "options", "address", "idle"),
    [
        ("", [], "tcp:127.0.0.1:0", None), ('[bridge]\naddress = "tcp:127.0.0.1:9"\nidle_timeout = 7.0\n', [], "tcp:127.0.0.1:9", 7.0),
        ("[bridge]\nidle_timeout = 7.0\n", ["--address", "tcp:127.0.0.1:8"], "tcp:127.0.0.1:8", 7.0),
    ],
)  # fmt: skip
def test_what_serve_takes_from_its_file_and_its_options(
    table: str, options: list[str], address: str, idle: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, given = tmp_path / "s.toml", cast("list[Any]", [])
    file.write_text(f'[[pools]]\nadapter = "m"\n{table}')
    monkeypatch.setattr(script, "run", lambda main, config: given.append(config) or 5)
    result = CliRunner().invoke(build(), ["serve", "--config", str(file), "--token-file", "/t", *options])
    assert result.exit_code == 5, result.output
    bridge = given[0].bridge
    assert (bridge.address, bridge.token_file) == (
        address if address != "tcp:127.0.0.1:0" else BridgeConfig().address,
        "/t",
    )
    assert bridge.idle_timeout == (BridgeConfig().idle_timeout if idle is None else idle)


@pytest.mark.parametrize(("token", "token_file", "made"), [(None, None, True), ("t", None, False), (None, "/t", False)])
def test_the_token_of_a_bridge_is_in_a_file_while_it_serves(
    token: str | None, token_file: str | None, made: bool, tmp_path: Path
) -> None:
    runtime = cast("Any", SimpleNamespace(
        config=SimpleNamespace(bridge=SimpleNamespace(token=token, token_file=token_file), state_dir=str(tmp_path / "s")),
        bridge=SimpleNamespace(token="secret"), run_id="r",
    ))  # fmt: skip
    for taken_away in (False, True):
        with serve._token_place(runtime) as place:
            if not made:
                assert place == token_file
                continue
            file = Path(place or "")
            assert file.read_text() == "secret\n" and file.stat().st_mode & 0o777 == 0o600
            if taken_away:
                file.unlink()
        assert not list(tmp_path.glob("s/*"))
