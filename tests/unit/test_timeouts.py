"""How spans of time are told."""

from __future__ import annotations

import pytest

from snakepit_trio._timeouts import seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 s"), (1e-9, "0 s"), (0.00025, "0.00025 s"), (0.5, "0.5 s"), (2.3456, "2.35 s"), (999.4, "999 s"),
     (999.6, "1000 s"), (7200.0, "7200 s"), (123456.7, "123457 s")],
)  # fmt: skip
def test_seconds_are_never_a_power_of_ten(value: float, text: str) -> None:
    assert seconds(value) == text
