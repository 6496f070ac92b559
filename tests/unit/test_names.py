"""What may be the id of a session, the key of a value or the name of a program, and how long one may live."""

from __future__ import annotations

import math
from typing import Any

import pytest

from snakepit_trio._timeouts import NEVER
from snakepit_trio.errors import InvalidParameter
from snakepit_trio.sessions.records import check_name, check_ttl


@pytest.mark.parametrize(
    "name", ["a", " ", "x" * 256, "\u00e9" * 128, "\U0001f600" * 64, "%", "*", "'\"{}", "e\u0301", "..", "/"]
)
def test_names(name: str) -> None:
    assert check_name(name, "key") is name


@pytest.mark.parametrize(
    "name",
    ["", "x" * 257, "\u00e9" * 129, "\U0001f600" * 65, "a\0", "\n", "\x7f", "\u2028", "\ud800", "a\udfff", None, 1, b"a", "x" * 10**6],
)  # fmt: skip
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(InvalidParameter, match="key must be printable text of 1 to 256 bytes") as raised:
        check_name(name, "key")
    assert raised.value.details == {"path": "key"} and len(raised.value.message) < 200
    raised.value.message.encode("ascii")


def test_times_to_live() -> None:
    assert [check_ttl(value) for value in (None, 1, 0.001, NEVER, math.inf, 10**400)] == [
        None,
        1.0,
        0.001,
        None,
        None,
        None,
    ]
    assert type(check_ttl(1)) is float
    for value in (0, -1, -0.0, math.nan, -math.inf, True, "1", b"1", [], -(10**400)):
        with pytest.raises(InvalidParameter, match="ttl must be a positive number"):
            check_ttl(value)
