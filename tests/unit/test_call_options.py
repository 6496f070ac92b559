"""What a caller may say of a call, and where it ends."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio._call_options import (
    METADATA_ENTRIES,
    METADATA_SIZE,
    NO_OPTIONS,
    CallKeywords,
    CallOptions,
    StreamKeywords,
    check_limit,
    check_metadata,
)
from snakepit_trio.client.client import Client
from snakepit_trio.client.session import RemoteSession
from snakepit_trio.errors import InvalidParameter


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {str(n): "" for n in range(METADATA_ENTRIES)},
        {"key": "x" * (METADATA_SIZE - 3)},
        {"k" * METADATA_SIZE: ""},
    ],
)
def test_metadata_within_its_limits(metadata: dict[str, str]) -> None:
    check_metadata(metadata)
    CallOptions(metadata=metadata)


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({str(n): "" for n in range(METADATA_ENTRIES + 1)}, "metadata"),
        ({"key": "x" * (METADATA_SIZE - 2)}, "metadata"),
        ({"k" * (METADATA_SIZE + 1): ""}, "metadata"),
        ({"k": 1}, "metadata['k']"),
        ({1: "v"}, "metadata[1]"),
        ([("k", "v")], "metadata"),
    ],
)
def test_metadata_that_is_refused(metadata: Any, path: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        CallOptions(metadata=metadata)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize(
    ("priority", "idempotent", "path"), [(True, None, "priority"), (1.0, None, "priority"), (0, 1, "idempotent")]
)
def test_options_of_another_type(priority: Any, idempotent: Any, path: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        CallOptions(priority=priority, idempotent=idempotent)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize("limit", [0, -1, True, 1.0, "1"])
def test_a_limit_of_a_map_that_is_refused(limit: Any) -> None:
    check_limit(None)
    check_limit(1)
    with pytest.raises(InvalidParameter) as caught:
        check_limit(limit)
    assert caught.value.details["path"] == "limit"


@pytest.mark.parametrize(
    ("keywords", "allowed", "said"),
    [
        ({"timeot": 1.0}, CallKeywords, "did you mean 'timeout'?"),
        ({"colour": "red"}, CallKeywords, "there are"),
        ({"idempotent": True}, StreamKeywords, "no option 'idempotent'"),
    ],
)
def test_an_option_that_there_is_not(keywords: Any, allowed: type, said: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(said)) as caught:
        CallOptions.of(keywords, allowed)
    # For Python it is what any unexpected keyword argument is.
    assert isinstance(caught.value, TypeError)


def test_options_are_kept_as_they_were_given() -> None:
    metadata = {"k": "v"}
    options = CallOptions.of({"timeout": 2.0, "priority": 3, "metadata": metadata, "idempotent": False})
    metadata["k"] = "changed"
    within = options.within(None)
    assert within.timeout is None
    assert options.limit(9.0) == 2.0
    for kept in (options, within):
        assert (kept.priority, kept.metadata, kept.idempotent) == (3, {"k": "v"}, False)
    assert CallOptions.of({}) is NO_OPTIONS
    assert NO_OPTIONS.limit(9.0) == 9.0


def test_each_keyword_is_an_option_and_the_other_way_round() -> None:
    assert list(inspect.signature(CallOptions).parameters) == list(CallKeywords.__annotations__)


@pytest.mark.parametrize(
    "function", [sp.Pool.execute, sp.Pool.map, sp.Session.execute, Client.execute, RemoteSession.execute]
)
def test_a_signature_shows_the_options(function: Any) -> None:
    shown = inspect.signature(function).parameters
    for name, option in inspect.signature(CallOptions).parameters.items():
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default == option.default
