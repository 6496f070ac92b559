"""Read a :class:`~snakepit_trio.config.RuntimeConfig` from TOML and the environment."""

from __future__ import annotations

import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import attrs

from snakepit_trio._config_checks import describe, nearest, working_directory
from snakepit_trio.errors import ConfigError

from .pool import PoolConfig
from .runtime import RuntimeConfig

__all__ = ["load"]

_PREFIX = "SNAKEPIT_"
#: Variables with the prefix that are not configuration.
_OTHERS = frozenset(
    f"SNAKEPIT_{name}"
    for name in [
        *("STATE_DIR", "PORTABLE", "RUN_ID", "WORKER_ID", "MCP_TOKEN", "TOKEN"),
        # Variables for the worker of a ``command``.
        *("POOL", "LISTEN", "TOKEN_FILE", "READY_FILE", "READY_FD", "LIFELINE_FD", "THREADS", "MAX_PAYLOAD"),
    ]
)
_OTHER_PREFIXES = ("SNAKEPIT_TEST_", "SNAKEPIT_LOG")


def _fail(source: str, key: str, expected: str, got: str = "") -> NoReturn:
    raise ConfigError(
        f"{source}: {key}: expected {expected}{f', got {got}' if got else ''}",
        details={"source": source, "key": key, "expected": expected},
    )


def load(cls: type[RuntimeConfig], path: Path | None, environ: Mapping[str, str]) -> RuntimeConfig:
    """See :meth:`snakepit_trio.config.RuntimeConfig.load`."""
    source, table = _read(path)
    pools = table.setdefault("pools", [])
    if not isinstance(pools, list) or not all(isinstance(pool, dict) for pool in pools):
        _fail(source, "pools", "[[pools]] tables")
    # The source of each value, for error messages.
    origins: dict[tuple[str, ...], str] = {}
    _overlay(environ, cls, table, origins)
    try:
        made: RuntimeConfig = _make(cls, table, source, "", origins, ())
    except ConfigError as exc:
        # A wrong key is reported before missing pools, because it is probably the reason.
        if pools or exc.details["key"] != "pools":
            raise
        prefix = "tool.snakepit." if Path(source).name == "pyproject.toml" else ""
        _fail(source, "pools", f"at least one [[{prefix}pools]] table", "none")
    return made


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        for candidate in (Path("snakepit.toml"), Path("pyproject.toml")):
            if candidate.is_file():
                path = candidate
                break
        else:
            return f"{working_directory()} (no snakepit.toml, no pyproject.toml)", {}
    source = str(path)
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as exc:
        _fail(source, "file", "a readable TOML file", exc.strerror or str(exc))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        _fail(source, "file", "valid TOML", str(exc))
    except RecursionError:
        _fail(source, "file", "valid TOML", "values that are nested too deeply")
    if path.name == "pyproject.toml":
        tool = document.get("tool", {})
        document = tool.get("snakepit", {}) if isinstance(tool, dict) else {}
        if not isinstance(document, dict):
            _fail(source, "tool.snakepit", "a table")
    return source, document


def _overlay(
    environ: Mapping[str, str], cls: type[RuntimeConfig], table: dict[str, Any], origins: dict[tuple[str, ...], str]
) -> None:
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable in _OTHERS or variable.startswith(_OTHER_PREFIXES):
            continue
        words = variable.removeprefix(_PREFIX).split("__")
        parts = [part.lower() for part in words]
        target: dict[str, Any] = table
        owner: type = cls
        place: tuple[str, ...] = ()
        if parts[0] == "pools":
            if len(parts) < 3:
                _fail(variable, "name", f"{_PREFIX}POOLS__NAME__KEY")
            target, owner, parts = _pool_named(table["pools"], parts[1], variable), PoolConfig, parts[2:]
            place = _place_of("pools", target, 0)
            # If no table sets an adapter for the pool, the variable that created the pool is the error.
            if "adapter" not in target and "command" not in target:
                origins.setdefault((*place, "adapter"), variable)
        while len(parts) > 1:
            entry = _entry_hint(owner, parts[0])
            if entry is not None:
                # The rest is the key as written: names in an environment may differ only in case.
                name = "__".join(words[1 - len(parts) :])
                target[parts[0]] = _with_entry(target.get(parts[0]), name, entry, environ[variable], variable, parts[0])
                origins[*place, parts[0]] = variable
                break
            inner, many = _tables_of(owner, parts[0])
            if inner is None or many:
                _fail(variable, "name", f"{_PREFIX}KEY, {_PREFIX}POOLS__NAME__KEY or {_PREFIX}TABLE__KEY")
            nested = target.get(parts[0])
            if not isinstance(nested, dict):
                nested = target[parts[0]] = {}
            target, owner, place, parts = nested, inner, (*place, parts[0]), parts[1:]
        else:
            (key,) = parts
            hint = typing.get_type_hints(owner).get(key)
            if hint is None:
                _unknown(variable, key, owner)
            target[key] = _from_text(environ[variable], hint, variable, key)
            origins[*place, key] = variable


def _pool_named(pools: list[dict[str, Any]], name: str, variable: str) -> dict[str, Any]:
    found = [pool for pool in pools if _folded(pool.get("name", "default")) == _folded(name)]
    if len(found) > 1:
        _fail(variable, name, "the name of one pool only")
    if not found:
        found = [{"name": name}]
        pools.append(found[0])
    return found[0]


def _place_of(key: str, values: Mapping[str, Any], index: int) -> tuple[str, ...]:
    return (key, str(values.get("name", "default")).lower() if key == "pools" else str(index))


def _tables_of(cls: type, key: str) -> tuple[type | None, bool]:
    """Return the configuration class of a key's table (None for a plain value), and whether the key is a list of tables."""
    hint = typing.get_type_hints(cls).get(key)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        many = typing.get_origin(option) is Sequence
        inner = typing.get_args(option)[0] if many else option
        if isinstance(inner, type) and attrs.has(inner):
            return inner, many
    return None, False


def _entry_hint(cls: type, key: str) -> Any:
    """Return the type of a mapping's values if entries may be set individually, as for ``env``; None for any other key."""
    hint = typing.get_type_hints(cls).get(key)
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Mapping:
            found = typing.get_args(option)[1]
            return None if found is Any else found
    return None


def _with_entry(table: object, name: str, hint: Any, text: str, variable: str, key: str) -> dict[str, Any]:
    if not name:
        _fail(variable, key, "a name after it")
    if table is not None and not isinstance(table, dict):
        _fail(variable, key, "a table to add to", repr(table)[:60])
    return {**(table or {}), name: _from_text(text, hint, variable, f"{key}.{name}")}


def _folded(name: object) -> str:
    return str(name).lower().replace("-", "_").replace(".", "_")


def _from_text(text: str, hint: Any, variable: str, key: str) -> Any:
    """Convert a variable's text to a value of the field's type, strictly."""
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
        if typing.get_origin(option) is Mapping:
            return _from_json(text, variable, key, "a table as JSON")
        if typing.get_origin(option) is Sequence:
            return _from_json(text, variable, key, "a list as JSON")
        if option is str or (typing.get_origin(option) is Literal and text in typing.get_args(option)):
            return text
    _fail(variable, key, describe(hint), repr(text[:60]))


def _from_json(text: str, variable: str, key: str, expected: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        _fail(variable, key, expected, repr(text[:60]))
    except RecursionError:
        _fail(variable, key, expected, "one that is nested too deeply")


def _unknown(source: str, key: str, cls: type, where: str = "") -> NoReturn:
    names = [field.name for field in attrs.fields(cls)]
    close = nearest(key, names)
    hint = f" (did you mean {close}?)" if close else ""
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
    made = dict(values)
    for key, value in values.items():
        inner, many = _tables_of(cls, key)
        full = f"{where}.{key}" if where else key
        if inner is None or value is None:
            continue
        if many:
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                _fail(source, full, f"[[{key}]] tables")
            made[key] = [
                _make(inner, item, source, f"{full}[{index}]", origins, (*place, *_place_of(key, item, index)))
                for index, item in enumerate(value)
            ]
        elif not isinstance(value, dict):
            _fail(source, full, f"a [{key}] table")
        else:
            made[key] = _make(inner, value, source, full, origins, (*place, key))
    try:
        return cls(**made)
    except ConfigError as exc:
        key = str(exc.details.get("key", ""))
        origin = origins.get((*place, key), source)
        raise ConfigError(
            f"{origin}: {f'{where}.' if where and origin == source else ''}{exc.message}",
            details={**exc.details, "source": origin, "key": f"{where}.{key}" if where else key},
        ) from None
