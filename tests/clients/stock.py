"""grpcio, sync or aio: each step of a script, one line of JSON for each.

``python stock.py sync|aio ADDRESS STEPS``, the token in ``SNAKEPIT_TOKEN``, the compiled stubs on ``PYTHONPATH``. A step is
``[method, request, options]``: the request as protobuf's JSON, options ``timeout``, ``token``, ``take`` (cancel a stream after
so many messages).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import grpc
from channels import channel
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from snakepit.v1 import bridge_pb2, bridge_pb2_grpc

SERVICE = bridge_pb2.DESCRIPTOR.services_by_name["BridgeService"]


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def plain(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def failure(error: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"code": error.code().name, "details": error.details()}
    try:
        status = rpc_status.from_call(error)
    except ValueError as exc:
        return {**found, "bad_status": str(exc)}
    for detail in status.details if status is not None else ():
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                message = kind()
                detail.Unpack(message)
                found[kind.DESCRIPTOR.name] = plain(message)
    return found


def prepare(stub: Any, step: list[Any]) -> tuple[Any, Any, dict[str, Any], int | None]:
    name, body, options = step
    request = json_format.ParseDict(body, getattr(bridge_pb2, SERVICE.methods_by_name[name].input_type.name)())
    token = options.get("token", os.environ["SNAKEPIT_TOKEN"])
    keywords = {"timeout": options.get("timeout", 20), "metadata": [("authorization", f"Bearer {token}")]}
    return getattr(stub, name), request, keywords, options.get("take")


def run_sync(address: str, steps: list[Any]) -> None:
    with channel(address, aio=False) as opened:
        stub = bridge_pb2_grpc.BridgeServiceStub(opened)
        for step in steps:
            method, request, keywords, take = prepare(stub, step)
            try:
                call = method(request, **keywords)
                if SERVICE.methods_by_name[step[0]].output_type.name != "ToolChunk":
                    say(plain(call))
                    continue
                chunks = []
                for chunk in call:
                    chunks.append(plain(chunk))
                    if len(chunks) == take:
                        call.cancel()
                        break
                say(chunks)
            except grpc.RpcError as exc:
                say(failure(exc))


async def run_aio(address: str, steps: list[Any]) -> None:
    async with channel(address, aio=True) as opened:
        stub = bridge_pb2_grpc.BridgeServiceStub(opened)
        for step in steps:
            method, request, keywords, take = prepare(stub, step)
            try:
                call = method(request, **keywords)
                if SERVICE.methods_by_name[step[0]].output_type.name != "ToolChunk":
                    say(plain(await call))
                    continue
                chunks = []
                async for chunk in call:
                    chunks.append(plain(chunk))
                    if len(chunks) == take:
                        call.cancel()
                        break
                say(chunks)
            except grpc.aio.AioRpcError as exc:
                say(failure(exc))


if __name__ == "__main__":
    kind, address, steps = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if kind == "sync":
        run_sync(address, steps)
    else:
        asyncio.run(run_aio(address, steps))
