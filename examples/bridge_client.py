"""A client of a runtime that `snakepit serve` runs, in nothing but grpcio.

``python bridge_client.py ADDRESS TOKEN_FILE TOOL JSON``: needs ``grpcio`` and the stubs that protoc makes of
``protos/snakepit/v1/bridge.proto``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
from snakepit.v1 import bridge_pb2, bridge_pb2_grpc, payload_pb2


def main(address: str, token_file: str, tool: str, params: str) -> None:
    token = Path(token_file).read_text().strip()
    with grpc.insecure_channel(address.removeprefix("tcp:")) as channel:
        bridge = bridge_pb2_grpc.BridgeServiceStub(channel)
        payload = payload_pb2.Payload(encoding=payload_pb2.ENCODING_JSON, data=params.encode())
        request = bridge_pb2.ExecuteToolRequest(tool=tool, payload=payload)
        answer = bridge.ExecuteTool(request, metadata=[("authorization", f"Bearer {token}")], timeout=30)
        print(json.loads(answer.payload.data))


if __name__ == "__main__":
    main(*sys.argv[1:5])
