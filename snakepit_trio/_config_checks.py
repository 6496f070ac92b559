"""Checks of configuration values: strict types, ranges, and one clear error."""

from __future__ import annotations

import math
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import attrs

from snakepit_trio import _platform
from snakepit_trio.errors import ConfigError

__all__ = [
    "TINY",
    "Options",
    "UnknownOption",
    "as_path",
    "as_tuple",
    "check_types",
    "describe",
    "nearest",
    "refuse",
    "within",
    "working_directory",
]

#: Seconds. The shortest allowed time.
TINY = 1e-3


_PLURALS = {str: "text", float: "numbers"}


class UnknownOption(ConfigError, TypeError):
    """A keyword that is no option: for Python a TypeError, as any unexpected keyword argument."""


def nearest(key: str, names: Iterable[str]) -> str:
    """The name that somebody may have meant, in quotes; "" when none is like it."""
    # A worker imports this module, and nobody mistypes an option there.
    import difflib

    close = difflib.get_close_matches(key, list(names), n=1)
    return repr(close[0]) if close else ""


class Options:
    """The base of the configuration's classes: their options are given by name, and one that does not exist is refused with the
    one that was meant."""

    __slots__ = ("_given",)
    #: The options that it was made with; the others have their defaults.
    _given: frozenset[str]

    def __new__(cls, *args: object, **options: object) -> Self:
        names = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]
        if args:
            raise UnknownOption(
                f"{cls.__name__} takes its options by name, such as {cls.__name__}({names[0]}=...)",
                details={"source": "code", "key": names[0], "expected": "options by name"},
            )
        for key in options:
            if key not in names:
                close = nearest(key, names)
                raise UnknownOption(
                    f"{key}: not an option of {cls.__name__}{f'; did you mean {close}?' if close else ''}",
                    details={"source": "code", "key": key, "expected": f"a field of {cls.__name__}"},
                )
        self = super().__new__(cls)
        object.__setattr__(self, "_given", frozenset(options))
        return self


def refuse(key: str, value: object, expected: str) -> typing.NoReturn:
    """Raise a ConfigError about a value."""
    try:
        shown = repr(value)
    except RecursionError:
        shown = "a value that is nested too deeply"
    raise ConfigError(
        f"{key}: expected {expected}, got {shown if len(shown) <= 100 else shown[:97] + '...'}",
        details={"source": "code", "key": key, "expected": expected},
    )


def describe(hint: Any) -> str:
    """Return the name of a type in plain words."""
    origin = typing.get_origin(hint)
    if hint is None or hint is type(None):
        return "None"
    if origin is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in typing.get_args(hint))
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {describe(typing.get_args(hint)[0]).removeprefix('a ').removeprefix('an ')}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of text to {'anything' if typing.get_args(hint)[1] is Any else _PLURALS[typing.get_args(hint)[1]]}"
    return {int: "an int", float: "a number", str: "text", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value has a type, strictly: True is not an int, nan is not a number; an int is accepted as a float."""
    origin = typing.get_origin(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in typing.get_args(hint))
    if hint is float:
        # An int beyond the range of floats would overflow when it is added to a time.
        return type(value) in (int, float) and (abs(value) <= sys.float_info.max or value == math.inf)  # type: ignore[arg-type]
    if hint in (int, str, bool):
        return type(value) is hint
    if origin is tuple or (origin is not None and issubclass(origin, Sequence)):
        return isinstance(value, tuple) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        kept = typing.get_args(hint)[1]
        return isinstance(value, Mapping) and all(type(k) is str and _fits(v, kept) for k, v in value.items())
    if hint is Any:
        return True
    return isinstance(value, hint)


def check_types(instance: Any) -> None:
    """Check every field of an attrs instance by its type and its range.

    Raises:
        ConfigError: A field is invalid.
    """
    hints = typing.get_type_hints(type(instance))
    for field in attrs.fields(type(instance)):
        value = getattr(instance, field.name)
        if "check" in field.metadata:
            field.metadata["check"](value)
        elif not _fits(value, hints[field.name]):
            refuse(field.name, "..." if not field.repr else value, describe(hints[field.name]))
        low, high = field.metadata.get("range", (None, None))
        if value is not None and low is not None and not low <= value <= high:
            refuse(field.name, value, f"at least {low}" if high == math.inf else f"{low} to {high}")


def within(default: Any, low: float, high: float = math.inf) -> Any:
    """Return an attrs field with a default and a range of allowed values."""
    return attrs.field(default=default, metadata={"range": (low, high)})


@typing.overload
def as_path(value: str | os.PathLike[str]) -> str: ...
@typing.overload
def as_path(value: None) -> None: ...
def as_path(value: Any) -> Any:
    """Convert a path to a string, for a file or directory field; any other value is left for the check."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_tuple(value: Any) -> Any:
    """Convert a list to a tuple, so that the field is immutable; any other value is left for the check."""
    return tuple(value) if isinstance(value, list) else value


def working_directory() -> str:
    """Return this process's working directory.

    Raises:
        ConfigError: The directory has been deleted; the error names it.
    """
    try:
        return os.getcwd()
    except FileNotFoundError:
        name = _platform.deleted_directory()
        raise ConfigError(
            f"the working directory {name} has been deleted: change to one that exists",
            details={"source": "code", "key": "cwd", "expected": "a directory that exists"},
        ) from None
