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
from tests.adapters import valued

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


async def opens(adapter: Any, **options: Any) -> None:
    async with sp.open_pool(adapter, **{"size": 1, **options}):
        pass


def does(act: Callable[[Any], Any]) -> Callable[[sp.Pool], Awaitable[Any]]:
    """What is wrong before anything is waited for."""

    async def wrong(pool: sp.Pool) -> None:
        act(pool)

    return wrong


async def waits_for(found: Any) -> None:
    await found


async def loops_over(found: Any) -> None:
    async for _ in found:
        pass


async def is_too_large(pool: sp.Pool) -> None:
    async with sp.open_pool("tests.adapters.valued", size=1, max_payload=2048) as small:
        await small.execute("echo", {"value": "x" * 4000})


class Unmarked(sp.Adapter):
    """An adapter's class, at hand."""


def open_block(words: str, then: str) -> str:
    return f"{words.partition('(')[0]}(...) opens a block: write `async with {words}:`, and {then} inside"


IN_POOL = open_block("open_pool(...) as pool", "use `pool`")
IN_RESULTS = open_block("map(...) as results", "`async for ... in results`")
IN_CHUNKS = open_block("stream(...) as chunks", "`async for ... in chunks`")
NAMED = "adapter: expected a name that the workers import, got"


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
        "be given; annotate it with one that docs/payloads.md lists, such as a dataclass",
    ),
    Row(
        "an output that is none", lambda pool: opens("tests.adapters.valued", worker_output="file"), sp.ConfigError,
        "worker_output: expected 'auto' or 'stderr' or 'logging' or 'discard', got 'file'",
    ),
    Row("a module for an adapter", lambda pool: opens(valued), sp.ConfigError, f"{NAMED} the module itself: write 'tests.adapters.valued'"),
    Row(
        "a class for an adapter", lambda pool: opens(Unmarked), sp.ConfigError,
        f"{NAMED} the class itself: write 'tests.integration.test_wrong_inputs:Unmarked'",
    ),
    Row(
        "a function for an adapter", lambda pool: opens(valued.size), sp.ConfigError,
        f"{NAMED} a function: write 'tests.adapters.valued', its module, where @snakepit_trio.tool marks the functions that are tools",
    ),
    Row(
        "a number for an adapter", lambda pool: opens(4), sp.ConfigError,
        "adapter: expected the name of a module, such as 'my_module' or 'my_module:Class', got 4",
    ),
    Row("open_pool awaited", lambda pool: waits_for(sp.open_pool("m")), TypeError, IN_POOL),
    Row("open_pool in a plain with", does(lambda pool: sp.open_pool("m").__enter__()), TypeError, IN_POOL),  # type: ignore[attr-defined]
    Row(
        "open_pool used without its block", does(lambda pool: sp.open_pool("m").execute), AttributeError,  # type: ignore[attr-defined]
        f"no attribute 'execute': {IN_POOL}",
    ),
    Row("a map without its block", lambda pool: loops_over(pool.map("echo", [{"value": 1}])), TypeError, IN_RESULTS),
    Row("a map in a plain for", does(lambda pool: list(pool.map("echo", [{"value": 1}]))), TypeError, IN_RESULTS),
    Row("a stream without its block", lambda pool: loops_over(pool.stream("echoes", {"values": []})), TypeError, IN_CHUNKS),
    Row(
        "a session without its block", does(lambda pool: pool.session("me").execute), AttributeError,
        "no attribute 'execute': " + open_block("session(...) as session", "use `session`"),
    ),
    Row(
        "an option that is misspelt", lambda pool: opens("m", sise=2), sp.ConfigError,
        "sise: not an option of PoolConfig; did you mean 'size'?",
    ),
    Row(
        "a policy's option that is misspelt", does(lambda pool: sp.RetryConfig(attempt=2)), sp.ConfigError,  # type: ignore[call-arg]
        "attempt: not an option of RetryConfig; did you mean 'attempts'?",
    ),
    Row(
        "options without names", does(lambda pool: sp.PoolConfig("m")), TypeError,  # type: ignore[misc]
        "PoolConfig takes its options by name, such as PoolConfig(adapter=...)",
    ),
    Row("a size that is text", lambda pool: opens("m", size="2"), sp.ConfigError, "size: expected an int, got '2'"),
    Row(
        "a value in the place of the arguments", lambda pool: pool.execute("echo", 1), sp.InvalidParameter,
        "params must be a mapping of argument names to values, such as {'a': 1}, not int",
    ),
    Row(
        "arguments as keywords", lambda pool: pool.execute("echo", value=1), sp.InvalidParameter,
        "a call has no option 'value'; there are timeout, priority, metadata, idempotent, and a tool's arguments are one mapping: "
        "{'value': ...}",
    ),
    Row(
        "an option of a call that is misspelt", lambda pool: pool.execute("echo", {"value": 1}, timeot=1), sp.InvalidParameter,
        "a call has no option 'timeot'; did you mean 'timeout'?",
    ),
    Row("a tool that is misspelt", calls("eco"), sp.ToolNotFound, "pool 'default' has no tool 'eco'; did you mean 'echo'?"),
    Row(
        "a function that is no tool", lambda pool: pool.execute(json.dumps, {}), sp.InvalidParameter,
        "the tool must be named by text, not function; a function is a tool when it is marked with @snakepit_trio.tool in the "
        "adapter",
    ),
    Row(
        "a stream that is executed", calls("echoes", values=[]), sp.StreamingUnsupported,
        "'echoes' gives a stream: use pool.stream('echoes', ...)",
    ),
    Row(
        "a number of inputs", does(lambda pool: pool.map("echo", 5)), sp.InvalidParameter,
        "inputs must be an iterable of mappings, such as [{'a': 1}, {'a': 2}], not int",
    ),
    Row(
        "one input for a map", does(lambda pool: pool.map("echo", {"value": 1})), sp.InvalidParameter,
        "inputs must be an iterable of mappings, such as [{'a': 1}, {'a': 2}], not one mapping",
    ),
    Row(
        "an executor's method", does(lambda pool: pool.submit), AttributeError,
        "'Pool' object has no attribute 'submit'; here it is: await pool.execute(tool, {...})",
    ),
    Row(
        "a name that is bound", does(lambda pool: pool.bind("tests.adapters.valued")), sp.InvalidParameter,
        "bind takes an adapter's module, its class, or a Protocol, not an object of type str",
    ),
    Row(
        "an adapter's object that is bound", does(lambda pool: pool.bind(Unmarked())), sp.InvalidParameter,
        "bind takes an adapter's module, its class, or a Protocol, not an object of type Unmarked; give the class itself: "
        "pool.bind(Unmarked)",
    ),
    Row(
        "a pool that there is not", does(lambda pool: pool.runtime.pool("gpu")), sp.PoolNotFound,
        "there is no pool 'gpu'; there are 'default'",
    ),
    Row(
        "a class that is marked", does(lambda pool: sp.tool(Unmarked)), sp.InvalidParameter,
        "@tool marks functions, and 'Unmarked' is a class: mark its methods, and give 'module:Unmarked' as the adapter",
    ),
    Row(
        "a built-in function without a signature", does(lambda pool: sp.tool(max)), sp.InvalidParameter,
        "@tool can't see the parameters of <built-in function max>: write a function that calls it",
    ),
    Row(
        "a built-in function of *args", does(lambda pool: sp.tool(print)), sp.InvalidParameter,
        "@tool marks what can be called by names, and <built-in function print> takes *args: write a function that calls it",
    ),
    Row(
        "a tool's name without a keyword", does(lambda pool: sp.tool("add")), sp.InvalidParameter,  # type: ignore[type-var]
        "@tool takes a name by keyword: @tool(name='add')",
    ),
    Row(
        "a lambda that is marked", does(lambda pool: sp.tool(lambda: 1)), sp.InvalidParameter,
        "a tool can't be called '<lambda>': a letter, then up to 63 letters, digits, '_', '.' or '-'; give it a name: "
        "@tool(name=...)",
    ),
    Row(
        "arguments that are too large", is_too_large, sp.InvalidParameter,
        "params: has 4010 bytes when encoded; the limit is 2048 (max_payload)",
    ),
    Row(
        "a call that takes too long", lambda pool: pool.execute("echo", {"value": 1}, timeout=0), sp.RequestTimeout,
        "'echo' was queued when timeout=0 was spent",
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
