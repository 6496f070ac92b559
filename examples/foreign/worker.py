"""A worker in plain grpcio: nothing of snakepit_trio is imported, only what protoc makes of protos/.

    python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. \\
        protos/snakepit/v1/payload.proto protos/snakepit/v1/worker.proto

    async with sp.open_pool(command=["python", "worker.py"]) as pool: ...
"""

import hmac
import json
import os
import signal
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from snakepit.v1 import payload_pb2 as p
from snakepit.v1 import worker_pb2 as w
from snakepit.v1 import worker_pb2_grpc

#: The library's own limit is 4 MiB.
LONGEST = int(os.environ.get("SNAKEPIT_MAX_PAYLOAD", "0")) + 65536
THREADS = int(os.environ.get("SNAKEPIT_THREADS", "1"))


def add(a, b):
    return a + b


def boom(message):
    raise ValueError(message)


def nap(seconds, still_wanted):
    """A tool that can be long looks now and then whether its caller is still there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and still_wanted():
        time.sleep(0.01)
    print("nap", "ended" if still_wanted() else "was cancelled", flush=True)
    return seconds


def count(n):
    for number in range(n):
        yield {"n": number}


INTEGER, NUMBER, TEXT = {"type": "integer"}, {"type": "number"}, {"type": "string"}


def schema(**properties):
    return json.dumps({"type": "object", "properties": properties, "required": sorted(properties)})


SPECS = [
    w.ToolSpec(name="add", description="Sums.", parameters_schema=schema(a=NUMBER, b=NUMBER), idempotent=True),
    w.ToolSpec(name="boom", description="Raises.", parameters_schema=schema(message=TEXT)),
    w.ToolSpec(name="length", description="Counts characters.", parameters_schema=schema(text=TEXT)),
    w.ToolSpec(name="nap", description="Waits.", parameters_schema=schema(seconds=NUMBER)),
    w.ToolSpec(name="whoami", description="What a call knows of itself."),
    w.ToolSpec(name="count", description="Counts.", parameters_schema=schema(n=INTEGER), streaming=True),
]


class Worker(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self):
        self.running = {}  # request id -> set when its handler has ended

    def Handshake(self, request, context):
        return w.HandshakeResponse(
            protocol_version=1,
            pid=os.getpid(),
            tools=SPECS,
            # No "exchange": the host uses Execute and ExecuteStream.
            capabilities=["json", "health", "settle"],
            backend="python",
            implementation="grpcio",
            threads=THREADS,
        )

    def Execute(self, request, context):
        with self.under_way(request):
            params = read(request.payload, context)
            if request.tool == "add":
                return answer(add(**params))
            if request.tool == "boom":
                return answer(boom(**params))
            if request.tool == "length":
                return answer(len(params["text"]))
            if request.tool == "nap":
                return answer(nap(**params, still_wanted=context.is_active))
            if request.tool == "whoami":
                return answer(
                    {
                        "request_id": request.request_id,
                        "session_id": request.session_id,
                        "attempt": request.attempt,
                        "metadata": dict(request.metadata),
                        "time_left": context.time_remaining(),
                        "pid": os.getpid(),
                    }
                )
            return context.abort(grpc.StatusCode.NOT_FOUND, f"there is no tool {request.tool!r}")

    def ExecuteStream(self, request, context):
        with self.under_way(request):
            for chunk in count(**read(request.payload, context)):
                if not context.is_active():
                    return
                yield answer(chunk)

    def Settle(self, request, context):
        """The host has cancelled a call, and asks when it has stopped."""
        ended = self.running.get(request.request_id)
        if ended is not None:
            ended.wait()
        return w.SettleResponse()

    def under_way(self, request):
        return UnderWay(self.running, request.request_id)


class UnderWay:
    def __init__(self, running, request_id):
        self.running, self.id = running, request_id

    def __enter__(self):
        self.running[self.id] = threading.Event()

    def __exit__(self, *exc):
        self.running.pop(self.id).set()


def read(payload, context):
    if payload.encoding != p.ENCODING_JSON:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this worker reads JSON only")
    return json.loads(payload.data)


def answer(value):
    return w.ExecuteResponse(payload=p.Payload(encoding=p.ENCODING_JSON, data=json.dumps(value).encode()))


class TokenCheck(grpc.ServerInterceptor):
    """Nobody but the host may call: the secret is in a file that only this user can read."""

    def __init__(self, token):
        self.expected = f"Bearer {token}".encode()

        def refuse(request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")

        self.refusal = grpc.unary_unary_rpc_method_handler(refuse)

    def intercept_service(self, proceed, details):
        given = dict(details.invocation_metadata).get("authorization", "")
        return proceed(details) if hmac.compare_digest(given.encode(), self.expected) else self.refusal


def main():
    with open(os.environ["SNAKEPIT_TOKEN_FILE"]) as file:
        token = file.read().strip()
    # A thread for each call, and some for health checks and for Settle while all calls are busy.
    server = grpc.server(
        futures.ThreadPoolExecutor(THREADS * 2 + 2),
        interceptors=[TokenCheck(token)],
        options=[("grpc.max_receive_message_length", LONGEST), ("grpc.max_send_message_length", LONGEST)],
    )
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(Worker(), server)
    well = health.HealthServicer()
    well.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(well, server)
    listen = os.environ["SNAKEPIT_LISTEN"]  # unix:PATH or tcp:HOST:PORT
    port = server.add_insecure_port(listen.removeprefix("tcp:"))
    server.start()
    # Only now, and with the address as it really is: one line.
    address = listen if listen.startswith("unix:") else f"tcp:127.0.0.1:{port}"
    with open(os.environ["SNAKEPIT_READY_FILE"], "w") as file:
        file.write(address + "\n")
    # SIGTERM is the host's wish for an orderly end; calls are over by then.
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop.wait()
    server.stop(grace=1).wait()


if __name__ == "__main__":
    main()
