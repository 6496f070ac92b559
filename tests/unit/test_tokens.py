"""The token that clients of a bridge must show, when it is in a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snakepit_trio.bridge.tokens import TokenFile, held_token
from snakepit_trio.config import BridgeConfig
from snakepit_trio.errors import ConfigError


def written(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_what_is_no_token(tmp_path: Path) -> None:
    for text in ("", " \n", "two words", "a\nb", "caf\u00e9", b"\xff\xfe", "nul\0", "\u2028"):
        with pytest.raises(ConfigError, match="does not hold a token"):
            TokenFile(written(tmp_path / "t", text))
    assert TokenFile(written(tmp_path / "t", "  one \n")).look() == "one"
    # Of a longer file the rest is not looked at.
    assert len(TokenFile(written(tmp_path / "t", "x" * 10_000)).look()) == 8192


def test_who_may_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in (0o640, 0o604, 0o620, 0o602, 0o601, 0o610):
        with pytest.raises(ConfigError, match="by others"):
            TokenFile(written(tmp_path / "t", "token", mode))
    for mode in (0o600, 0o400, 0o700):
        TokenFile(written(tmp_path / "t", "token", mode))
    with pytest.raises(ConfigError, match="no file"):
        TokenFile(Path("/dev/null"))
    with pytest.raises(ConfigError, match="can't be read"):
        TokenFile(tmp_path / "nothing")
    owner = (tmp_path / "t").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        TokenFile(tmp_path / "t")  # What is root's is trusted.
        os.chown(tmp_path / "t", 1234, -1)
    with pytest.raises(ConfigError, match="another user's"):
        TokenFile(tmp_path / "t")


def test_a_change_counts_unless_it_is_no_use(tmp_path: Path) -> None:
    path = written(tmp_path / "t", "first")
    token = TokenFile(path)
    assert token.look() == "first"
    written(tmp_path / "u", "second").replace(path)
    assert token.look() == "second"
    written(path, "not good")
    assert token.look() == token.look() == "second"
    path.unlink()
    assert token.look() == "second"
    written(path, "third")
    assert token.look() == "third"


def test_a_file_that_was_made_goes_unless_it_is_another_by_then(tmp_path: Path) -> None:
    path = tmp_path / "t"
    config = BridgeConfig(address="tcp:127.0.0.1:0", token_file=str(path))
    with held_token(config) as token:
        assert path.stat().st_mode & 0o777 == 0o600
        assert len(token.look()) >= 40 and path.read_text() == token.look() + "\n"
    assert not path.exists()
    with held_token(config):
        written(tmp_path / "u", "mine").replace(path)
    with held_token(config) as token:
        assert token.look() == "mine"
    assert path.read_text() == "mine"
    with held_token(BridgeConfig(address="tcp:127.0.0.1:0", token="given")) as token:
        assert token.look() == "given"
