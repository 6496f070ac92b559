"""What a user does wrong, and the sentence that the user then sees: a row for each."""

from __future__ import annotations

import json
import pathlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio
import pandas as pd
import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio


class Row(NamedTuple):
    """A mistake with a pool of ``tests.adapters.valued``.

    Attributes:
        name: What is done.
        act: Does it.
        error: What it raises.
        text: The whole text of the error.
    """

    name: str
    act: Callable[[sp.Pool], Awaitable[Any]]
    error: type[BaseException]
    text: str


def calls(tool: str, **params: Any) -> Callable[[sp.Pool], Awaitable[Any]]:
    return lambda pool: pool.execute(tool, params)


async def opens(adapter: str, **options: Any) -> None:
    async with sp.open_pool(adapter, size=1, **options):
        pass


FREQ = pd.DataFrame({"a": [1]}, index=pd.date_range("2024", periods=1, freq=pd.DateOffset(months=2)))
ROWS = [
    Row("a number for a path", calls("size", path=3), sp.InvalidParameter, 'size: params["path"]: expected Path, got int'),
    Row(
        "a unit that is none", calls("size", path="x", unit="lines"), sp.InvalidParameter,
        'size: params["unit"]: expected one of "bytes", "words", got "lines"',
    ),
    Row(
        "an address that is none", calls("within", address="10.0.0", network="10.0.0.0/8"), sp.InvalidParameter,
        "within: params[\"address\"]: expected IPv4Address, got '10.0.0': Expected 4 octets in '10.0.0'",
    ),
    Row(
        "a network with host bits", calls("within", address="10.0.0.1", network="10.0.0.1/8"), sp.InvalidParameter,
        "within: params[\"network\"]: expected IPv4Network, got '10.0.0.1/8': 10.0.0.1/8 has host bits set",
    ),
    Row(
        "an object of any class", calls("echo", value={"a": [threading.Lock()]}), sp.InvalidParameter,
        'params["value"]["a"][0]: a value of type _thread.lock can\'t be sent',
    ),
    Row(
        "a function", calls("echo", value=len), sp.InvalidParameter,
        'params["value"]: a value of type builtin_function_or_method can\'t be sent',
    ),
    Row(
        "a subclass of a path", calls("echo", value=type("Place", (pathlib.PurePosixPath,), {"__module__": "app"})("x")),
        sp.InvalidParameter, 'params["value"]: a value of type app.Place can\'t be sent',
    ),
    Row(
        "a frame whose freq has no text", calls("echo", value=FREQ), sp.InvalidParameter,
        "params[\"value\"]: Arrow can't hold this pandas.DataFrame: its index has the freq <DateOffset: months=2>, which has no "
        "text; set the index's freq to None",
    ),
    Row("an argument too few", calls("size"), sp.InvalidParameter, 'size: params["path"]: is missing'),
    Row("an argument too many", calls("size", path="x", n=1), sp.InvalidParameter, 'size: params["n"]: is not a parameter of the tool'),
    Row(
        "a parameter that no value meets", lambda pool: opens("tests.adapters.unmeetable"), sp.WorkerStartupError,
        "pool 'default': no worker could start: tool 'wait': no value of type Event can be sent, so its parameter 'event' can't "
        "be given; docs/payloads.md lists what can be sent",
    ),
    Row(
        "an output that is none", lambda pool: opens("tests.adapters.valued", worker_output="file"), sp.ConfigError,
        "worker_output: expected 'auto' or 'stderr' or 'logging' or 'discard', got 'file'",
    ),
    Row("a tool that raises", calls("size", path="/nowhere"), sp.ToolError, "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'"),
]  # fmt: skip


async def test_what_a_user_sees() -> None:
    wrong = {}
    async with sp.open_pool("tests.adapters.valued", size=1) as pool:
        for row in ROWS:
            with anyio.fail_after(30), pytest.raises(row.error) as caught:
                await row.act(pool)
            if str(caught.value) != row.text:
                wrong[row.name] = str(caught.value)
    assert not wrong, json.dumps(wrong, indent=2)
