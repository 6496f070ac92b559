"""Reads a :class:`~snakepit_trio.config.RuntimeConfig` from TOML and the environment."""

from __future__ import annotations

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import attrs

from snakepit_trio.config import BridgeConfig, PoolConfig, RuntimeConfig, TlsConfig
from snakepit_trio.errors import ConfigError

__all__ = ["load"]

_PREFIX = "SNAKEPIT_"
#: Variables with the prefix that are not configuration.
_OTHERS = ("SNAKEPIT_STATE_DIR", "SNAKEPIT_RUN_ID", "SNAKEPIT_WORKER_ID")
_OTHER_PREFIXES = ("SNAKEPIT_TEST_", "SNAKEPIT_LOG")


def _fail(source: str, key: str, expected: str, got: str = "") -> NoReturn:
    raise ConfigError(
        f"{source}: {key}: expected {expected}{f', got {got}' if got else ''}",
        details={"source": source, "key": key, "expected": expected},
    )


def load(cls: type[RuntimeConfig], path: Path | None, environ: Mapping[str, str]) -> RuntimeConfig:
    """See :meth:`snakepit_trio.config.RuntimeConfig.load`."""
    source, table = _read(path)
    pools = table.pop("pools", [])
    bridge = table.pop("bridge", None)
    if not isinstance(pools, list) or not all(isinstance(pool, dict) for pool in pools):
        _fail(source, "pools", "[[pools]] tables")
    if bridge is not None and not isinstance(bridge, dict):
        _fail(source, "bridge", "a [bridge] table")
    # Where each value came from, for the message about a bad one.
    origins: dict[tuple[str, ...], str] = {}
    _overlay(environ, table, pools, bridge_holder := {"bridge": bridge}, origins)
    bridge = bridge_holder["bridge"]
    made_pools = []
    for index, pool in enumerate(pools):
        name = pool.get("name", "default")
        made_pools.append(_make(PoolConfig, pool, source, f"pools[{index}]", origins, ("pools", str(name).lower())))
    made_bridge = None
    if bridge is not None:
        tls = bridge.pop("tls", None)
        if tls is not None:
            if not isinstance(tls, dict):
                _fail(source, "bridge.tls", "a table")
            bridge["tls"] = _make(TlsConfig, tls, source, "bridge.tls", origins, ("bridge", "tls"))
        made_bridge = _make(BridgeConfig, bridge, source, "bridge", origins, ("bridge",))
    made: RuntimeConfig = _make(cls, {**table, "pools": made_pools, "bridge": made_bridge}, source, "", origins, ())
    return made


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        for candidate in (Path("snakepit.toml"), Path("pyproject.toml")):
            if candidate.is_file():
                path = candidate
                break
        else:
            return "the environment", {}
    source = str(path)
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as exc:
        _fail(source, "file", "a readable TOML file", exc.strerror or str(exc))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        _fail(source, "file", "valid TOML", str(exc))
    if path.name == "pyproject.toml":
        tool = document.get("tool", {})
        document = tool.get("snakepit", {}) if isinstance(tool, dict) else {}
        if not isinstance(document, dict):
            _fail(source, "tool.snakepit", "a table")
    return source, document


def _overlay(
    environ: Mapping[str, str],
    table: dict[str, Any],
    pools: list[dict[str, Any]],
    holder: dict[str, Any],
    origins: dict[tuple[str, ...], str],
) -> None:
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable in _OTHERS or variable.startswith(_OTHER_PREFIXES):
            continue
        parts = [part.lower() for part in variable.removeprefix(_PREFIX).split("__")]
        text = environ[variable]
        place: tuple[str, ...]
        owner: type
        if parts[0] == "pools":
            if len(parts) != 3:
                _fail(variable, "name", f"{_PREFIX}POOLS__NAME__KEY")
            _, name, key = parts
            found = [pool for pool in pools if _folded(pool.get("name", "default")) == _folded(name)]
            if len(found) > 1:
                _fail(variable, name, "the name of one pool only")
            if not found:
                found = [{"name": name}]
                pools.append(found[0])
            target, place, owner = found[0], ("pools", str(found[0].get("name", "default")).lower(), key), PoolConfig
        elif parts[0] == "bridge":
            if holder["bridge"] is None:
                holder["bridge"] = {}
            target, key, place, owner = holder["bridge"], parts[-1], tuple(parts), BridgeConfig
            if len(parts) == 3 and parts[1] == "tls":
                target, owner = target.setdefault("tls", {}), TlsConfig
            elif len(parts) != 2:
                _fail(variable, "name", f"{_PREFIX}BRIDGE__KEY")
        elif len(parts) == 1:
            target, key, place, owner = table, parts[0], (parts[0],), RuntimeConfig
        else:
            _fail(variable, "name", f"{_PREFIX}KEY, {_PREFIX}POOLS__NAME__KEY or {_PREFIX}BRIDGE__KEY")
        hint = typing.get_type_hints(owner).get(key)
        if hint is None:
            _unknown(variable, key, owner)
        target[key] = _from_text(text, hint, variable, key)
        origins[place] = variable


def _folded(name: object) -> str:
    return str(name).lower().replace("-", "_").replace(".", "_")


def _from_text(text: str, hint: Any, variable: str, key: str) -> Any:
    """A variable's text as a value of the field's type, strictly."""
    options = list(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else [hint]
    if type(None) in options and text.lower() == "none":
        return None
    for option in options:
        if option is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if option in (int, float):
            try:
                return option(text)
            except ValueError:
                continue
        if typing.get_origin(option) is tuple:
            return tuple(part.strip() for part in text.split(","))
        if option is str or (typing.get_origin(option) is Literal and text in typing.get_args(option)):
            return text
    from snakepit_trio.config import _describe

    _fail(variable, key, _describe(hint), repr(text[:60]))


def _unknown(source: str, key: str, cls: type, where: str = "") -> NoReturn:
    names = [field.name for field in attrs.fields(cls)]
    close = difflib.get_close_matches(key, names, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    _fail(source, f"{where}.{key}" if where else key, f"a key of {cls.__name__}{hint}", "one that is not known")


def _make(
    cls: type,
    values: Mapping[str, Any],
    source: str,
    where: str,
    origins: dict[tuple[str, ...], str],
    place: tuple[str, ...],
) -> Any:
    names = {field.name for field in attrs.fields(cls)}
    for key in values:
        if key not in names:
            _unknown(source, key, cls, where)
    missing = [f.name for f in attrs.fields(cls) if f.default is attrs.NOTHING and f.name not in values]
    if missing:
        _fail(source, f"{where}.{missing[0]}" if where else missing[0], "a value", "none")
    try:
        return cls(**values)
    except ConfigError as exc:
        key = str(exc.details.get("key", ""))
        origin = origins.get((*place, key), source)
        raise ConfigError(
            f"{origin}: {f'{where}.' if where and origin == source else ''}{exc.message}",
            details={**exc.details, "source": origin, "key": f"{where}.{key}" if where else key},
        ) from None
