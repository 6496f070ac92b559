"""The files of a bridge's TLS: what is wrong with which of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from snakepit_trio.bridge.listening import tls_context
from snakepit_trio.config import BridgeConfig, TlsConfig
from snakepit_trio.errors import ConfigError


def test_none() -> None:
    assert tls_context(BridgeConfig(address="tcp:127.0.0.1:0")) is None


@pytest.mark.parametrize("missing", ["cert", "key", "ca"])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    paths = {name: str(tmp_path / name) for name in ("cert", "key", "ca")}
    for name, path in paths.items():
        if name != missing:
            Path(path).write_text("no certificate")
    with pytest.raises(ConfigError, match=f"{missing} can't be read") as raised:
        tls_context(BridgeConfig(address="tcp:127.0.0.1:0", tls=TlsConfig(**paths)))
    assert raised.value.details["key"] == f"bridge.tls.{missing}"


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("no certificate")
    (tmp_path / "key").write_text("no key")
    tls = TlsConfig(cert=str(tmp_path / "cert"), key=str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="are no certificate and its key") as raised:
        tls_context(BridgeConfig(address="tcp:127.0.0.1:0", tls=tls))
    assert raised.value.details["key"] == "bridge.tls.cert"
