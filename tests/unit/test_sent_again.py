"""What a client sends again when its connection was lost under it: what only reads, and what comes to the same when done twice."""

from __future__ import annotations

from typing import Any, cast

import pytest

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio.client.client import Client
from snakepit_trio.client.session import RemoteSession
from snakepit_trio.client.values import pack
from snakepit_trio.errors import SnakepitError
from snakepit_trio.wire.generated.snakepit import v1

pytestmark = pytest.mark.anyio


class Link:
    """Keeps what is sent, and whether it may be sent again."""

    def __init__(self) -> None:
        self.errors = InternalErrors()
        self.sent: dict[str, bool] = {}
        self.requests: list[Any] = []
        self.raised: Exception | None = None

    async def unary(self, method: str, request: Any, answer: Any, *, again: bool = False, **options: Any) -> Any:
        self.sent[method] = again
        self.requests.append(request)
        if self.raised is not None:
            raise self.raised
        if answer is v1.OpenSessionResponse:
            return answer(session=v1.SessionState(session_id="s", generation="g"))
        if answer is v1.GetValueResponse:
            return answer(payload=pack([1], what="value", limit=1000), version=2)
        return answer(stored=True, version=3) if answer is v1.PutValueResponse else answer()


async def test_of_a_session() -> None:
    link = Link()
    session = RemoteSession(
        cast("Any", None), cast("Any", link), v1.SessionState(session_id="s", generation="g", ttl=5.0), 1000
    )
    assert (session.id, session.generation, session.ttl, repr(session)) == ("s", "g", 5.0, "<RemoteSession 's'>")
    assert await session.put("k", 1) == 3
    assert await session.get("k") == [1] and await session.get_versioned("k") == ([1], 2)
    assert await session.delete("k") is False and await session.keys() == ()
    await session.heartbeat()
    await session.close()
    assert link.sent == {
        "PutValue": False, "GetValue": True, "DeleteValue": False, "ListValues": True, "Heartbeat": True, "CloseSession": False,
    }  # fmt: skip
    # Another session that has the id by then is not meant.
    assert all((request.session_id, request.generation) == ("s", "g") for request in link.requests)


async def test_of_a_runtime() -> None:
    link = Link()
    client = Client(cast("Any", link), "p", 1000)
    await client.ping("x")
    assert await client.tools() == ()
    await client.put_program("n", b"")
    await client.get_program("n")
    assert await client.delete_program("n") is False
    assert link.sent == {
        "Ping": True, "ListTools": True, "PutProgram": True, "GetProgram": True, "DeleteProgram": False,
    }  # fmt: skip
    # One of this id is the same the second time; a new one is not.
    for id, again in (("s", True), (None, False)):
        async with client.session(id):
            assert link.sent["OpenSession"] is again
            assert link.requests[-1].session_id == (id or "") and link.requests[-1].ttl is None
        assert link.sent["CloseSession"] is False
    link.sent.clear()
    async with client.session("s", ttl=None, detach=True):
        assert link.requests[-1].ttl == 0.0
    assert link.sent.keys() == {"OpenSession"}


async def test_a_program_that_is_not_there() -> None:
    link = Link()
    client = Client(cast("Any", link), "p", 1000)
    link.raised = SnakepitError("none", code="program_not_found")
    assert await client.get_program("n") is None and await client.get_program("n", default=b"d") == b"d"
    link.raised = SnakepitError("other", code="quota_exceeded")
    with pytest.raises(SnakepitError, match="other"):
        await client.get_program("n", default=b"d")
