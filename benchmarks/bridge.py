"""What the bridge costs: a call through it beside a direct one, and beside a plain grpcio.aio server with a process pool.

Clients are grpcio.aio channels in a process of their own, the same for both servers; each server runs the same function in two
processes. Rounds alternate between the servers, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import anyio
import grpc

import snakepit_trio as sp

METHOD = "/snakepit.v1.BridgeService/ExecuteTool"
WORKERS = 2


@sp.tool
def add(a: int, b: int) -> int:
    return a + b


def plain_add(data: bytes) -> bytes:
    values = json.loads(data)
    return json.dumps(add(values["a"], values["b"])).encode()


async def plain_server() -> None:
    """What one writes without a runtime: grpcio.aio in front of a ProcessPoolExecutor. Prints its port."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:

        async def handle(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return await loop.run_in_executor(pool, plain_add, request)

        server = grpc.aio.server()
        name, method = METHOD[1:].split("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(handle)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
        await server.stop(None)


async def client(address: str, clients: int, seconds: float, request: bytes) -> None:
    """Clients that call one after another, each on a channel of its own; prints calls and latencies."""
    metadata = [("authorization", f"Bearer {os.environ.get('SNAKEPIT_TOKEN', '')}")]
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(clients)]
    calls = [channel.unary_unary(METHOD) for channel in channels]
    await asyncio.gather(*(call(request, metadata=metadata, timeout=30) for call in calls))
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def work(call: grpc.aio.UnaryUnaryMultiCallable) -> None:
        while (began := time.perf_counter()) < end:
            await call(request, metadata=metadata, timeout=30)
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*map(work, calls))
    rate = len(taken) / (time.perf_counter() - began)
    for channel in channels:
        await channel.close()
    print(json.dumps({"calls_per_second": rate, "median_us": statistics.median(taken) * 1e6}), flush=True)


async def measure(address: str, clients: int, seconds: float, request: bytes, token: str) -> dict[str, float]:
    arguments = [sys.executable, __file__, "--as-client", address, str(clients), str(seconds), request.hex()]
    done = await anyio.run_process(arguments, env={**os.environ, "SNAKEPIT_TOKEN": token}, stderr=None)
    found: dict[str, float] = json.loads(done.stdout)
    return found


async def main(seconds: float, rounds: int) -> None:
    from snakepit_trio.wire.generated.snakepit import v1

    data = b'{"a": 1, "b": 2}'
    request = bytes(v1.ExecuteToolRequest(tool="add", payload=v1.Payload(encoding=v1.Encoding(1), data=data)))
    config = sp.RuntimeConfig(
        pools=[sp.PoolConfig(adapter="bridge", size=WORKERS, env={"PYTHONPATH": os.path.dirname(__file__)})],
        bridge=sp.BridgeConfig(address="tcp:127.0.0.1:0"),
    )
    peer = subprocess.Popen(
        [sys.executable, __file__, "--as-server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer_address = f"127.0.0.1:{peer.stdout.readline().strip()}"
    results: dict[str, object] = {}
    try:
        async with sp.open_runtime(config) as runtime:
            assert runtime.bridge is not None
            door = runtime.bridge
            pool = runtime.pool()
            async with sp.connect(door.address, token=door.token) as own:
                for name, execute in (("direct", pool.execute), ("sp.connect, same process", own.execute)):
                    taken = []
                    for _ in range(500):
                        began = time.perf_counter()
                        await execute("add", {"a": 1, "b": 2})
                        taken.append(time.perf_counter() - began)
                    results[name] = {"median_us": round(statistics.median(taken[100:]) * 1e6)}
            for clients in (1, 16, 64):
                ours, theirs = [], []
                for _ in range(rounds):
                    ours.append(await measure(door.address[4:], clients, seconds, request, door.token))
                    theirs.append(await measure(peer_address, clients, seconds, data, ""))
                for name, found in (("bridge", ours), ("grpcio.aio + ProcessPoolExecutor", theirs)):
                    results[f"{name}, {clients} clients"] = {
                        key: round(statistics.median(one[key] for one in found)) for key in found[0]
                    }
    finally:
        peer.stdin.close()
        peer.wait()
        peer.stdout.close()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    if "--as-server" in sys.argv:
        asyncio.run(plain_server())
    elif "--as-client" in sys.argv:
        _, _, where, many, length, body = sys.argv
        asyncio.run(client(where, int(many), float(length), bytes.fromhex(body)))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--seconds", type=float, default=2.0)
        parser.add_argument("--rounds", type=int, default=3)
        given = parser.parse_args()
        anyio.run(main, given.seconds, given.rounds, backend="trio")
