"""What a caller may say of a call, and where it ends."""

from __future__ import annotations

from typing import Any

import pytest

from snakepit_trio._call_options import METADATA_ENTRIES, METADATA_SIZE, check_limit, check_metadata, check_options
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
    check_options(0, metadata)


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
        check_options(0, metadata)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize(
    ("priority", "idempotent", "path"), [(True, None, "priority"), (1.0, None, "priority"), (0, 1, "idempotent")]
)
def test_options_of_another_type(priority: Any, idempotent: Any, path: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_options(priority, None, idempotent)
    assert caught.value.details["path"] == path


@pytest.mark.parametrize("limit", [0, -1, True, 1.0, "1"])
def test_a_limit_of_a_map_that_is_refused(limit: Any) -> None:
    check_limit(None)
    check_limit(1)
    with pytest.raises(InvalidParameter) as caught:
        check_limit(limit)
    assert caught.value.details["path"] == "limit"
