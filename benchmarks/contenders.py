"""Who takes part in the benchmarks of calls: each opens its workers and gives a function that calls the same ``echo``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import snakepit_trio as sp

Call = Callable[[bytes], Awaitable[Any]]


@sp.tool
def echo(data: bytes) -> bytes:
    """What every contender runs."""
    return data


@asynccontextmanager
async def pool(workers: int) -> AsyncIterator[Call]:
    async with sp.open_pool("contenders", size=workers, max_queue=None) as opened:

        async def call(data: bytes) -> Any:
            return await opened.execute("echo", {"data": data})

        yield call


@asynccontextmanager
async def trio_parallel(workers: int) -> AsyncIterator[Call]:
    import trio
    import trio_parallel

    limiter = trio.CapacityLimiter(workers)
    async with trio_parallel.open_worker_context() as context:

        async def call(data: bytes) -> Any:
            return await context.run_sync(echo, data, limiter=limiter)

        yield call


@asynccontextmanager
async def executor(workers: int) -> AsyncIterator[Call]:
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as processes:

        async def call(data: bytes) -> Any:
            return await loop.run_in_executor(processes, echo, data)

        yield call


@asynccontextmanager
async def loky(workers: int) -> AsyncIterator[Call]:
    import loky as library

    loop = asyncio.get_running_loop()
    processes = library.ProcessPoolExecutor(workers)
    try:

        async def call(data: bytes) -> Any:
            return await loop.run_in_executor(processes, echo, data)

        yield call
    finally:
        processes.shutdown()


@asynccontextmanager
async def grpcio(workers: int) -> AsyncIterator[Call]:
    import grpc.aio

    with tempfile.TemporaryDirectory() as directory:
        address = f"unix:{directory}/grpc.sock"
        server = subprocess.Popen([sys.executable, __file__, "--serve-grpc", address], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            async with grpc.aio.insecure_channel(address) as channel:
                yield channel.unary_unary("/bench.Echo/Echo")
        finally:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()


async def serve_grpc(address: str) -> None:
    import grpc.aio

    async def handler(data: bytes, context: Any) -> bytes:
        return echo(data)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("bench.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(handler)})]
    )
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


@asynccontextmanager
async def ray(workers: int) -> AsyncIterator[Call]:
    import itertools

    import ray as library

    library.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:

        @library.remote
        class Echo:
            def echo(self, data: bytes) -> bytes:
                return data

        actors = itertools.cycle([Echo.remote() for _ in range(workers)])

        async def call(data: bytes) -> Any:
            return await next(actors).echo.remote(data)

        yield call
    finally:
        library.shutdown()


@asynccontextmanager
async def pipe(workers: int) -> AsyncIterator[Call]:
    """One worker; the calling thread blocks, so there is no event loop in the way, and no concurrency."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer_pipe, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:

        async def call(data: bytes) -> Any:
            ours.send(data)
            return ours.recv()

        yield call
    finally:
        ours.close()
        process.join()


def _answer_pipe(connection: Any) -> None:
    try:
        while True:
            connection.send(echo(connection.recv()))
    except EOFError:
        return


@asynccontextmanager
async def socketpair(workers: int) -> AsyncIterator[Call]:
    """The floor: bytes through a socket to a process and back, blocking, nothing else. Only for what fits in one packet."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = "import socket,sys\ns=socket.socket(fileno=int(sys.argv[1]))\nwhile d:=s.recv(1<<16): s.send(d)"
    process = subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    try:

        async def call(data: bytes) -> Any:
            ours.send(data)
            return ours.recv(1 << 16)

        yield call
    finally:
        ours.close()
        process.wait()


class Contender(NamedTuple):
    """The event loop that it runs on, how it is opened, and what has to be installed for it."""

    backend: str
    opener: Callable[[int], AbstractAsyncContextManager[Call]]
    module: str = ""
    distribution: str = ""


OURS = "snakepit_trio on Trio"
CONTENDERS = {
    OURS: Contender("trio", pool),
    "snakepit_trio on asyncio": Contender("asyncio", pool),
    "trio-parallel": Contender("trio", trio_parallel, "trio_parallel", "trio-parallel"),
    "ProcessPoolExecutor": Contender("asyncio", executor),
    "loky": Contender("asyncio", loky, "loky", "loky"),
    "grpcio.aio, unary (1 server)": Contender("asyncio", grpcio, "grpc", "grpcio"),
    "Ray actors": Contender("asyncio", ray, "ray", "ray"),
    "multiprocessing.Pipe, blocking, 1 worker": Contender("asyncio", pipe),
    "raw socketpair, blocking, 1 worker": Contender("asyncio", socketpair),
}


def installed() -> dict[str, Contender]:
    """Those that can take part here."""
    return {
        name: contender
        for name, contender in CONTENDERS.items()
        if not contender.module or importlib.util.find_spec(contender.module) is not None
    }


def versions() -> dict[str, str]:
    """The versions of those that are no part of Python."""
    import importlib.metadata

    names = {"snakepit-trio", *(c.distribution for c in installed().values() if c.distribution)}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


if __name__ == "__main__" and "--serve-grpc" in sys.argv:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    asyncio.run(serve_grpc(sys.argv[-1]))
