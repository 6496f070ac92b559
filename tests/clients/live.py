"""grpcio.aio, told line by line what to call: any number of RPCs at once, on one connection.

``python live.py ADDRESS``, the token in ``SNAKEPIT_TOKEN``, the compiled stubs on ``PYTHONPATH``. A line of its input is
``[key, method, request]``, the method with its service (``Health/Watch``), the request as protobuf's JSON. A line of its output
is ``[key, what]``: a message as JSON, or ``{"code": ..., "details": ...}`` at the end. The end of its input ends it.
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
from grpc_health.v1 import health_pb2, health_pb2_grpc
from snakepit.v1 import bridge_pb2, bridge_pb2_grpc

SERVICES = {
    "Health": (health_pb2, health_pb2_grpc.HealthStub),
    "BridgeService": (bridge_pb2, bridge_pb2_grpc.BridgeServiceStub),
}


def say(key: Any, what: Any) -> None:
    print(json.dumps([key, what]), flush=True)


async def call(opened: Any, key: Any, name: str, body: Any) -> None:
    service, method = name.split("/")
    module, stub = SERVICES[service]
    described = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    request = json_format.ParseDict(body, getattr(module, described.input_type.name)())
    metadata = [("authorization", f"Bearer {os.environ['SNAKEPIT_TOKEN']}")]
    made = getattr(stub(opened), method)(request, timeout=60, metadata=metadata)
    try:
        if described.server_streaming:
            async for message in made:
                say(key, json_format.MessageToDict(message, preserving_proto_field_name=True))
        else:
            say(key, json_format.MessageToDict(await made, preserving_proto_field_name=True))
    except grpc.aio.AioRpcError as exc:
        say(key, {"code": exc.code().name, "details": exc.details()})
    else:
        say(key, {"code": "OK"})


async def main(address: str) -> None:
    loop = asyncio.get_running_loop()
    async with channel(address, aio=True) as opened:
        calls = []
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            calls.append(loop.create_task(call(opened, *json.loads(line))))
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
