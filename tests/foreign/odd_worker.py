"""The example's worker with tools and habits that a test needs; run with the example's directory on the path.

Arguments: ``no-settle``, ``no-health``, ``msgpack``, ``version=N``, ``bad-schema``, ``deaf-to-sigterm``.
"""

import os
import signal
import subprocess
import sys
import time

import grpc
import worker as example
from snakepit.v1 import payload_pb2 as p
from snakepit.v1 import worker_pb2 as w

HABITS = set(sys.argv[1:])


class Worker(example.Worker):
    def Handshake(self, request, context):
        answer = super().Handshake(request, context)
        for name, streaming in [("die", False), ("typed", False), ("aborts", False), ("odd", False), ("deaf", False),
                                ("blobs", True), ("child", False), ("compute", False)]:  # fmt: skip
            answer.tools.add(name=name, streaming=streaming)
        given = set(answer.capabilities)
        for name in ("settle", "health"):
            if f"no-{name}" in HABITS:
                given.discard(name)
        if "msgpack" in HABITS:
            given.add("msgpack")
        answer.capabilities[:] = sorted(given)
        for habit in HABITS:
            if habit.startswith("version="):
                answer.protocol_version = int(habit.removeprefix("version="))
        if "bad-schema" in HABITS:
            answer.tools[0].parameters_schema = "[1"
        return answer

    def Execute(self, request, context):
        tool = getattr(self, f"do_{request.tool}", None)
        if tool is None:
            return super().Execute(request, context)
        with self.under_way(request):
            return tool(example.read(request.payload, context), context)

    def do_die(self, params, context):
        os._exit(3)

    def do_typed(self, params, context):
        info = p.ErrorInfo(
            code="quota_exceeded", message="too much", retryable=True,
            details=p.Payload(encoding=p.ENCODING_JSON, data=b'{"quota": "disk", "limit": 5}'),
        )  # fmt: skip
        context.set_trailing_metadata([("snakepit-error-bin", info.SerializeToString())])
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    def do_aborts(self, params, context):
        context.abort(getattr(grpc.StatusCode, params["status"]), "as asked")

    def do_odd(self, params, context):
        payload = {
            "not json": p.Payload(encoding=p.ENCODING_JSON, data=b"{"),
            "no encoding": p.Payload(data=b"1"),
            "unknown encoding": p.Payload(encoding=99, data=b"1"),
        }.get(params["how"])
        return w.ExecuteResponse(payload=payload)

    def do_deaf(self, params, context):
        if "marker" in params:
            open(params["marker"], "w").close()
        time.sleep(params["seconds"])
        return example.answer("done")

    def do_child(self, params, context):
        return example.answer(subprocess.Popen(["sleep", "600"]).pid)

    def do_compute(self, params, context):
        """Keep the GIL in C code, and compute."""
        n, began = 1_000_000, time.monotonic()
        sum(range(n))
        sum(range(int(n * params["seconds"] / (time.monotonic() - began))))
        return example.answer("computed")

    def ExecuteStream(self, request, context):
        if request.tool != "blobs":
            yield from super().ExecuteStream(request, context)
            return
        params = example.read(request.payload, context)
        with self.under_way(request):
            for number in range(params["n"]):
                with open(params["path"], "w") as file:
                    file.write(str(number))
                yield example.answer("x" * params["size"])


example.Worker = Worker
if "deaf-to-sigterm" in HABITS:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal = lambda *_: None
example.main()
