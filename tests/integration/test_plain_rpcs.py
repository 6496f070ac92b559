"""Our own worker, driven by a stock grpcio client over the plain RPCs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import snakepit_trio as sp
from tests.foreign.stubs import compile_protos

grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The generated modules, in a namespace of their own."""
    place = compile_protos(tmp_path_factory.mktemp("stubs"))
    sys.path.insert(0, str(place))
    try:
        from snakepit.v1 import payload_pb2, worker_pb2, worker_pb2_grpc

        class Stubs:
            p, w, g = payload_pb2, worker_pb2, worker_pb2_grpc

        yield Stubs
    finally:
        sys.path.remove(str(place))


class Client:
    """Calls one worker, as a program in any language would."""

    def __init__(self, stubs: Any, channel: Any, token: str) -> None:
        self.s = stubs
        self.stub = stubs.g.WorkerServiceStub(channel)
        self.channel = channel
        self.metadata = [("authorization", f"Bearer {token}")]

    def request(self, tool: str, params: Any, **fields: Any) -> Any:
        payload = self.s.p.Payload(encoding=self.s.p.ENCODING_JSON, data=json.dumps(params).encode())
        return self.s.w.ExecuteRequest(tool=tool, payload=payload, **fields)

    def execute(self, tool: str, params: Any, timeout: float = 20, **fields: Any) -> Any:
        answer = self.stub.Execute(self.request(tool, params, **fields), metadata=self.metadata, timeout=timeout)
        assert answer.payload.encoding == self.s.p.ENCODING_JSON
        return json.loads(answer.payload.data)


@contextmanager
def connected(stubs: Any, pool: sp.Pool, token: str | None = None) -> Iterator[Client]:
    (worker,) = pool.workers()
    with grpc.insecure_channel(worker.address.removeprefix("tcp:")) as channel:
        yield Client(stubs, channel, pool.runtime._token if token is None else token)


async def in_thread(function: Callable[[], None]) -> None:
    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(function)


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_calls_and_streams(stubs: Any, transport: str) -> None:
    async with sp.open_pool("tests.adapters.agent", size=1, transport=transport) as pool:

        def use() -> None:
            with connected(stubs, pool) as client:
                assert client.execute("add", {"a": 1, "b": 2}) == 3
                request = client.request("count", {"n": 200})
                chunks = [
                    json.loads(c.payload.data) for c in client.stub.ExecuteStream(request, metadata=client.metadata)
                ]
                assert chunks == list(range(200))
                hello = client.stub.Handshake(
                    stubs.w.HandshakeRequest(protocol_version=1, protocol_version_min=1), metadata=client.metadata
                )
                assert {"json", "msgpack", "settle", "health"} <= set(hello.capabilities)

        await in_thread(use)
        # The host's own calls are none the worse.
        assert await pool.execute("add", {"a": 1, "b": 1}) == 2


async def test_failures(stubs: Any) -> None:
    code = grpc.StatusCode
    async with sp.open_pool("tests.adapters.agent", size=1) as pool:

        def use() -> None:
            with connected(stubs, pool) as client:
                for tool, params, status in [
                    ("fail", {"message": "no such row"}, code.UNKNOWN),
                    ("nothing", {}, code.NOT_FOUND),
                    ("add", {"a": "x", "b": 1}, code.INVALID_ARGUMENT),
                    ("count", {"n": 1}, code.UNIMPLEMENTED),
                ]:
                    with pytest.raises(grpc.RpcError) as failure:
                        client.execute(tool, params)
                    assert failure.value.code() is status, tool
                    trailers = dict(failure.value.trailing_metadata())
                    info = stubs.p.ErrorInfo.FromString(trailers["snakepit-error-bin"])
                    assert info.code
                    if tool == "fail":
                        assert info.remote_types[0] == "builtins.ValueError" and info.remote_message == "no such row"
                with pytest.raises(grpc.RpcError) as failure:
                    request = client.request("add", {})
                    request.payload.data = b"{"
                    client.stub.Execute(request, metadata=client.metadata, timeout=20)
                assert failure.value.code() is code.INVALID_ARGUMENT
            with connected(stubs, pool, token="wrong") as client, pytest.raises(grpc.RpcError) as failure:
                client.execute("add", {"a": 1, "b": 2})
            assert failure.value.code() is code.UNAUTHENTICATED

        await in_thread(use)


async def test_cancel_and_deadline_reach_the_tool(stubs: Any, tmp_path: Path) -> None:
    async with sp.open_pool("tests.adapters.agent", size=1) as pool:

        def use() -> None:
            with connected(stubs, pool) as client:
                for number, how in enumerate(("cancel", "deadline")):
                    path = tmp_path / how
                    request = client.request("wait", {"path": str(path)}, request_id=f"r{number}")
                    timeout = 30.0 if how == "cancel" else 0.3
                    call = client.stub.Execute.future(request, metadata=client.metadata, timeout=timeout)
                    until = time.monotonic() + 20
                    while not (path.exists() and path.read_text()) and time.monotonic() < until:
                        time.sleep(0.01)
                    if how == "cancel":
                        call.cancel()
                    else:
                        assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    # Once it is settled, nothing of it runs.
                    settle = stubs.w.SettleRequest(request_id=f"r{number}")
                    client.stub.Settle(settle, metadata=client.metadata, timeout=20)
                    assert path.read_text() == "cancelled"
                assert client.execute("add", {"a": 1, "b": 2}) == 3

        await in_thread(use)
