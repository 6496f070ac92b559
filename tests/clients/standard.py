"""The stock clients of the standard services: health and reflection, by grpcio; prints what they found as JSON."""

from __future__ import annotations

import json
import os
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

TOKEN = os.environ["SNAKEPIT_TOKEN"]


class WithToken(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends the token with whatever a library sends."""

    def _with(self, details):
        return details._replace(metadata=[("authorization", f"Bearer {TOKEN}")])

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self._with(details), request)

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(self._with(details), requests)


with grpc.insecure_channel(sys.argv[1].removeprefix("tcp:")) as plain:
    channel = grpc.intercept_channel(plain, WithToken())
    health = health_pb2_grpc.HealthStub(channel)
    found = {}
    for service in ("", "default", "nothing"):
        try:
            found[service] = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        except grpc.RpcError as exc:
            found[service] = exc.code().name
    watch = health_pb2_grpc.HealthStub(plain).Watch(
        health_pb2.HealthCheckRequest(), metadata=[("authorization", f"Bearer {TOKEN}")], timeout=20
    )
    watched = next(watch).status
    database = ProtoReflectionDescriptorDatabase(channel)
    service = DescriptorPool(database).FindServiceByName("snakepit.v1.BridgeService")
    methods = [method.name for method in service.methods]
    print(
        json.dumps(
            {"health": found, "watched": watched, "services": sorted(database.get_services()), "methods": methods}
        ),
        flush=True,
    )
    print(json.dumps([answer.status for answer in watch]), flush=True)
