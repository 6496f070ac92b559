"""What a worker may say in its handshake is bounded before it is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from snakepit_trio.errors import ProtocolMismatch, WorkerStartupError
from snakepit_trio.supervision import handshake
from snakepit_trio.supervision.handshake import Introduction, shake_hands
from snakepit_trio.wire.fields import MOST_FIELDS, MOST_PARTS
from snakepit_trio.wire.generated.snakepit.v1 import HandshakeResponse, ToolSpec

pytestmark = pytest.mark.anyio


async def said(*tools: ToolSpec, raw: bytes = b"", wanted: int = 1, **fields: Any) -> Introduction:
    """What comes of a worker that says this."""

    async def unary(path: str, request: bytes) -> bytes:
        given = {"protocol_version": 1, "capabilities": ["exchange"], **fields}
        return bytes(HandshakeResponse(tools=list(tools), **given)) + raw

    connection: Any = SimpleNamespace(unary=unary)
    spec: Any = SimpleNamespace(worker_id="w", pool="p", threads=wanted)
    return await shake_hands(connection, spec, "run-")


async def test_what_adapters_say_is_taken() -> None:
    tools = [ToolSpec(name=f"t{i}", parameters_schema='{"properties": {}}', metadata={"a": "b"}) for i in range(300)]
    assert len((await said(*tools)).tools) == 300


DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


@pytest.mark.parametrize("schema", [DEEP, DEEP[:50_000], "[" * 100_000, "[]", "1", "{"])
@pytest.mark.parametrize("field", ["parameters_schema", "result_schema"])
async def test_a_schema_that_is_none_however_deep(schema: str, field: str) -> None:
    with pytest.raises(WorkerStartupError, match="a schema of 'bad' that is no JSON Schema"):
        await said(ToolSpec(name="good", **{field: "{}"}), ToolSpec(name="bad", **{field: schema}))  # type: ignore[arg-type]


async def test_more_bytes_than_any_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "HandshakeResponse", None)
    with pytest.raises(WorkerStartupError, match=f"the limit is {handshake._LONGEST}"):
        await said(ToolSpec(name="t", description="x" * handshake._LONGEST))


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        (b"\x1a\x00" * 100_000, MOST_FIELDS),
        (b"\x7a\x00" * 100_000, MOST_FIELDS),
        (bytes(HandshakeResponse(tools=[ToolSpec(metadata={str(i): "" for i in range(9)})])) * 300, MOST_PARTS),
        (bytes(HandshakeResponse(tools=[ToolSpec(name="x", description="y")])) * 2000, MOST_PARTS),
    ],
    ids=["tools", "what is not known", "metadata", "names"],
)
async def test_more_in_it_than_any_has(raw: bytes, limit: int) -> None:
    with pytest.raises(WorkerStartupError, match=f"more than {limit}"):
        await said(raw=raw)


async def test_a_long_name_is_not_repeated_at_length() -> None:
    with pytest.raises(WorkerStartupError) as caught:
        await said(ToolSpec(name="x" * 100_000))
    assert len(caught.value.message) < 300


async def test_names_of_tools() -> None:
    assert len((await said(ToolSpec(name="a"), ToolSpec(name="b"))).tools) == 2
    for names, words in (
        (["a", "b", "a"], "a tool 'a' twice"),
        (["1"], "'1' that can not be one"),
        ([""], "'' that can not"),
    ):
        with pytest.raises(WorkerStartupError, match=words):
            await said(*(ToolSpec(name=name) for name in names))


async def test_the_longest_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(bytes(HandshakeResponse(protocol_version=1, capabilities=["exchange"], tools=[ToolSpec(name="t")])))
    monkeypatch.setattr(handshake, "_LONGEST", size)
    await said(ToolSpec(name="t"))
    with pytest.raises(WorkerStartupError, match=f"has {size + 1} bytes; the limit is {size}"):
        await said(ToolSpec(name="tt"))


@pytest.mark.parametrize("version", [0, 2, 1000])
async def test_another_protocol(version: int) -> None:
    with pytest.raises(ProtocolMismatch, match=f"the worker speaks protocol {version}, this host 1 to 1") as refused:
        await said(protocol_version=version)
    assert refused.value.details == {"ours": 1, "theirs": version}


async def test_as_many_calls_as_both_sides_want() -> None:
    for theirs, ours, both in ((0, 4, 1), (1, 4, 1), (3, 4, 3), (4, 4, 4), (9, 4, 4), (0, 1, 1)):
        assert (await said(threads=theirs, wanted=ours)).threads == both


async def test_what_goes_with_an_exchange_alone() -> None:
    every = ["credits", "host_calls", "prefetch", "cancel"]
    assert (await said(capabilities=["exchange", *every])).capabilities == {"exchange", *every}
    assert (await said(capabilities=every)).capabilities == {"cancel"}
