"""What only a Ray cluster can do, and what becomes of workers when something of it is lost. Needs Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import psutil
import pytest
from anyio.streams.text import TextReceiveStream

import snakepit_trio as sp
from tests.documents import ROOT, matches, read_page
from tests.redis_server import redis_server

ray = pytest.importorskip("ray", reason="Ray is not installed: nox -s ray")
from tests.integration import ray_cluster  # noqa: E402
from tests.integration.ray_cluster import (  # noqa: E402
    BASIC,
    SMALL,
    actors,
    added_node,
    cluster,
    environment,
    free,
    kill_node,
    nothing_left,
    on_ray,
    running,
    workers_of_this_test,
)
from tests.integration.test_shared_memory import memories, through  # noqa: E402

__all__ = ["cluster", "nothing_left"]

pytestmark = ray_cluster.marks

#: Ends a test that hangs, in seconds.
LONG = 400.0


async def until(condition: Any) -> None:
    """Wait for what Ray tells nobody of."""
    while not condition():
        await anyio.sleep(0.05)


@asynccontextmanager
async def program(source: str, *arguments: str, **more: str) -> AsyncIterator[tuple[anyio.abc.Process, Any]]:
    """An application in a process of its own, and the lines that it prints."""
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(source), *arguments]
    async with (
        await anyio.open_process(command, env=environment(**more), stderr=subprocess.PIPE) as process,
        anyio.create_task_group() as nursery,
    ):
        said: list[bytes] = []

        async def listen() -> None:
            assert process.stderr is not None
            said.extend([data async for data in process.stderr])

        nursery.start_soon(listen)
        assert process.stdout is not None
        stream, buffer = TextReceiveStream(process.stdout), ""

        async def line() -> str:
            nonlocal buffer
            while "\n" not in buffer:
                try:
                    buffer += await stream.receive()
                except anyio.EndOfStream:
                    raise AssertionError(b"".join(said).decode()) from None
            first, _, buffer = buffer.partition("\n")
            return first

        yield process, line
        if process.stdin is not None:
            await process.stdin.aclose()
        assert await process.wait() in (0, -signal.SIGKILL), b"".join(said).decode()


async def tell(process: anyio.abc.Process, word: str) -> None:
    assert process.stdin is not None
    await process.stdin.send(f"{word}\n".encode())


# ---- what a worker is given ----------------------------------------------------------------------


async def test_arrays_and_bytes_through_shared_memory_and_inline() -> None:
    """The only node is this machine, and nobody had to say so."""
    numpy = pytest.importorskip("numpy")
    array, data = numpy.arange(1_000_000, dtype="f8"), os.urandom(3_000_000)
    with anyio.fail_after(LONG):
        for limit in (1 << 30, 0):
            async with sp.open_pool(BASIC, size=1, shm_limit=limit, **on_ray()) as pool:
                assert (await pool.execute("echo", {"value": array}) == array).all()
                assert await pool.execute("echo", {"value": data}) == data
                for _ in range(5):
                    await pool.execute("echo", {"value": data})
                [memory] = memories(pool)
                # The array comes back where it was sent, without a copy.
                assert through(memory) == ((7, 6) if limit else (0, 0))
                assert len(memory.sizes) <= 3 and len(memory._mapped) <= 2


async def test_the_resources_are_taken_and_given_back() -> None:
    with anyio.fail_after(LONG):
        await until(lambda: free("CPU"))
        whole = ray.cluster_resources()["CPU"]
        config = sp.RayConfig(resources={"num_cpus": 0.5}, placement_group="PACK")
        async with sp.open_pool(BASIC, size=1, **on_ray(ray=config)) as pool:
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            # One and its surge.
            await until(lambda: abs(ray.available_resources()["CPU"] - (whole - 1)) < 1e-3)
            assert len(actors()) == 1
        await until(lambda: free("CPU") and not actors())
        assert {group["state"] for group in ray.util.placement_group_table().values()} == {"REMOVED"}


async def test_workers_share_a_device_by_fractions(cluster: Any) -> None:
    with added_node(cluster, num_gpus=1), anyio.fail_after(LONG):
        config = sp.RayConfig(resources={"num_cpus": 0.25, "num_gpus": 0.5})
        async with sp.open_pool(BASIC, size=2, **on_ray(ray=config)) as pool:
            await pool.wait_ready(2)
            seen = [await pool.execute("environment", {"name": "CUDA_VISIBLE_DEVICES"}) for _ in range(8)]
            assert set(seen) == {"0"}
            await until(lambda: ray.available_resources().get("GPU", 0) < 1e-3)
            # There is no more of it: a third one waits for its part, and costs the others nothing.
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(pool.resize, 3)
                await until(lambda: len(pool.workers()) == 3)
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                assert pool.stats().ready == 2
                nursery.cancel_scope.cancel()
        await until(lambda: free("GPU"))


async def test_a_placement_group_spreads_the_workers(cluster: Any) -> None:
    with added_node(cluster), added_node(cluster), anyio.fail_after(LONG):
        config = sp.RayConfig(resources=SMALL, placement_group="STRICT_SPREAD")
        async with sp.open_pool("tests.adapters.basic", size=2, **on_ray(ray=config)) as pool:
            await pool.wait_ready(2)
            nodes = {
                actor["Address"]["NodeID"]
                for actor in ray._private.state.actors().values()
                if actor["State"] == "ALIVE"
            }
            assert len(nodes) == 2


async def test_the_runtime_env_brings_variables_and_the_adapters_module(
    cluster: Any, anyio_backend_name: str, tmp_path: Path
) -> None:
    """Local files go with the connection, so it must be the runtime's own; Ray's refusal says so."""
    (tmp_path / "brought_along.py").write_text(
        "import os\nimport snakepit_trio as sp\n@sp.tool\ndef where() -> list[str]:\n"
        "    return [__file__, os.environ['GREETING']]\n"
    )
    source = """
        import sys, anyio, ray
        import snakepit_trio as sp

        address, backend, place = sys.argv[1:]

        async def main():
            runtime_env = {"env_vars": {"GREETING": "hello"}, "working_dir": place, "excludes": ["*.bin"]}
            config = sp.RayConfig(address=address, resources={"num_cpus": 0.1}, runtime_env=runtime_env)
            async with sp.open_pool(
                "brought_along", size=1, startup_timeout=180, launcher="ray", ray=config
            ) as pool:
                print(*await pool.execute("where"), flush=True)

        anyio.run(main, backend=backend)
    """
    with anyio.fail_after(LONG):
        async with program(source, cluster.address, anyio_backend_name, str(tmp_path)) as (_, line):
            file, greeting = (await line()).split()
            assert greeting == "hello"
            assert "working_dir_files" in file
        config = sp.RayConfig(resources=SMALL, runtime_env={"env_vars": {"GREETING": "hi"}})
        async with sp.open_pool(BASIC, size=1, **on_ray(ray=config)) as pool:
            assert await pool.execute("environment", {"name": "GREETING"}) == "hi"
        config = sp.RayConfig(resources=SMALL, runtime_env={"working_dir": str(tmp_path)})
        with pytest.raises(sp.WorkerStartupError, match=r"Ray refused an actor: .* is not a valid URI"):
            async with sp.open_pool("brought_along", size=1, **on_ray(ray=config)):
                pass


# ---- what can't be had ---------------------------------------------------------------------------


async def test_what_ray_can_not_place_says_what_was_asked_for() -> None:
    for group in (None, "PACK"):
        asked = sp.RayConfig(resources={"num_cpus": 64, "num_gpus": 0.25, "tpu": 1}, placement_group=group)
        with anyio.fail_after(LONG):
            with pytest.raises(sp.WorkerStartupError, match=r"num_cpus=64, num_gpus=0\.25, tpu=1") as caught:
                async with sp.open_pool(BASIC, size=1, **on_ray(ray=asked, startup_timeout=2)):
                    pass
            assert caught.value.details["exit"] == "startup_timeout"
            assert caught.value.details["pool"] == "default"


async def test_a_pool_that_can_not_be_placed_fails_alone(cluster: Any) -> None:
    """Its requests fail at once with the reason; and when the resources come, its workers do."""
    asked = sp.RayConfig(resources={"num_cpus": 0.1, "late": 1})
    pools = [
        sp.PoolConfig(name="good", adapter=BASIC, size=1, **on_ray()),
        sp.PoolConfig(
            name="bad", adapter=BASIC, size=1,
            **on_ray(ray=asked, startup_timeout=5, restart_limit=0, restart_window=1, backoff_max=1),
        ),
    ]  # fmt: skip
    with anyio.fail_after(LONG):
        async with sp.open_runtime(sp.RuntimeConfig(pools=pools)) as runtime:
            assert await runtime.pool("good").execute("add", {"a": 1, "b": 2}) == 3
            with pytest.raises(sp.SnakepitError, match=r"Ray has not placed it; it asked for num_cpus=0\.1, late=1"):
                await runtime.pool("bad").execute("add", {"a": 1, "b": 2})
            (worker,) = runtime.pool("bad").workers()
            assert worker.state == "failed"


async def test_an_adapter_that_can_not_start_says_why() -> None:
    with anyio.fail_after(LONG):
        with pytest.raises(sp.WorkerStartupError, match="RuntimeError: no such device"):
            async with sp.open_pool("tests.adapters.broken_setup", size=1, **on_ray()):
                pass
        with pytest.raises(sp.WorkerStartupError, match="could not start /nowhere/python"):
            async with sp.open_pool(BASIC, size=1, python="/nowhere/python", **on_ray()):
                pass


async def test_an_opening_that_is_cancelled_leaves_nothing() -> None:
    """At any moment: before Ray has answered, while it looks for a place, while the worker starts."""
    nowhere = sp.RayConfig(resources={"tpu": 1}, placement_group="PACK")
    with anyio.fail_after(LONG):
        for seconds in (0.0, 0.01, 0.1, 0.5, 1.5):
            for config in (sp.RayConfig(resources=SMALL), nowhere):
                with anyio.move_on_after(seconds):
                    async with sp.open_pool(BASIC, size=2, **on_ray(ray=config)):
                        pass
                await until(lambda: free("CPU") and not actors() and not workers_of_this_test())


async def test_a_cluster_that_is_not_there() -> None:
    source = """
        import anyio, snakepit_trio as sp
        async def main():
            config = sp.RayConfig(address="127.0.0.1:9")
            async with sp.open_pool("tests.adapters.basic", size=1, launcher="ray", ray=config):
                pass
        try: anyio.run(main)
        except sp.WorkerStartupError as exc: print(exc.message)
    """
    with anyio.fail_after(LONG):
        async with program(source) as (_, line):
            assert "no Ray cluster at '127.0.0.1:9'" in await line()


async def test_the_first_steps_of_the_page(tmp_path: Path) -> None:
    """With a Ray of its own, from the directory that the user is in."""
    page = read_page(ROOT / "docs" / "ray.md")
    written = {block.name: block for block in page.blocks if block.language == "python" and block.name}
    for name, block in written.items():
        (tmp_path / str(name)).write_text(block.text)
    with anyio.fail_after(LONG):
        done = await anyio.run_process(
            [sys.executable, "first.py"], cwd=tmp_path, env=environment(), check=False, stderr=subprocess.PIPE
        )
    assert done.returncode == 0, done.stderr.decode()
    assert matches(str(written["first.py"].expected), done.stdout.decode()), done.stdout.decode()


# ---- the connection to Ray -----------------------------------------------------------------------


async def test_a_runtime_that_connects_itself_leaves_nothing(cluster: Any, anyio_backend_name: str) -> None:
    """In a process of its own: not connected before, nor afterwards; no word on its standard output but its own."""
    source = """
        import sys, anyio, ray
        import snakepit_trio as sp
        from snakepit_trio.testing.leaks import Footprint

        async def main():
            config = sp.RayConfig(address=sys.argv[1], resources={"num_cpus": 0.1})
            async with sp.open_pool(
                "tests.adapters.basic", size=1, startup_timeout=180, launcher="ray", ray=config
            ) as pool:
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                assert ray.is_initialized()
            assert not ray.is_initialized()

        # Ray itself leaves descriptors open, so only these are compared.
        before = Footprint.take()
        for _ in range(2):
            anyio.run(main, backend=sys.argv[2])
        after = Footprint.take()
        assert (after.children, after.threads) == (before.children, before.threads), after
        print("nothing")
    """
    with anyio.fail_after(LONG):
        async with program(source, cluster.address, anyio_backend_name) as (_, line):
            assert await line() == "nothing"


async def test_a_connection_that_the_application_closes_and_opens_around_a_pool(
    cluster: Any, anyio_backend_name: str
) -> None:
    """It costs the workers that were there, and nothing else, whether it is opened again or left to the pool."""
    source = """
        import sys, anyio, ray
        import snakepit_trio as sp

        address, backend = sys.argv[1:]

        def connect():
            ray.init(address=address, log_to_driver=False, configure_logging=False)

        async def main():
            connect()
            # What is reserved goes with a connection, too.
            config = sp.RayConfig(address=address, resources={"num_cpus": 0.1}, placement_group="PACK")
            options = dict(launcher="ray", ray=config, startup_timeout=180, queue_timeout=180, restart_limit=100)
            async with sp.open_pool("tests.adapters.basic", size=1, **options) as pool:
                assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert ray.is_initialized(), "it was the application's"
            async with sp.open_pool("tests.adapters.basic", size=1, **options) as pool:
                for again in (True, False):
                    (old,) = pool.workers()
                    ray.shutdown()
                    if again:
                        connect()
                    try:
                        # It may have begun, in the old one, and then it is not run again.
                        await pool.execute("add", {"a": 1, "b": 2})
                    except sp.WorkerCrashed:
                        pass
                    while pool.workers()[0].id == old.id:
                        await anyio.sleep(0.05)
                    assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            # This one was the pool's own.
            assert not ray.is_initialized()
            connect()
            async with sp.open_pool("tests.adapters.basic", size=1, **options) as pool:
                ray.shutdown()
            assert not ray.is_initialized()
            print("done")

        anyio.run(main, backend=backend)
    """
    with anyio.fail_after(LONG):
        async with program(source, cluster.address, anyio_backend_name) as (_, line):
            assert await line() == "done"


# ---- what is lost --------------------------------------------------------------------------------


async def test_the_workers_actor_ends_and_its_worker_with_it() -> None:
    """The lifeline is held by the actor's process."""
    with anyio.fail_after(LONG):
        async with sp.open_pool(BASIC, size=1, **on_ray()) as pool:
            (worker,) = pool.workers()
            actor = psutil.Process(worker.pid).parent()
            assert actor is not None
            async with anyio.create_task_group() as nursery:

                async def call() -> None:
                    with pytest.raises(sp.WorkerCrashed) as caught:
                        await pool.execute("sleep", {"seconds": 600}, timeout=600)
                    assert caught.value.details["reason"] == "node_lost"

                nursery.start_soon(call)
                await until(lambda: pool.stats().in_flight)
                actor.kill()
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert pool.workers()[0].pid != worker.pid
            await until(lambda: not running(worker.pid))


async def test_a_frozen_worker_is_found_by_its_heartbeats() -> None:
    with anyio.fail_after(LONG):
        async with sp.open_pool(BASIC, size=1, heartbeat_interval=0.5, heartbeat_misses=4, **on_ray()) as pool:
            (worker,) = pool.workers()
            async with pool.runtime.events.subscribe("worker.gone") as events:
                os.kill(worker.pid, signal.SIGSTOP)
                gone = await anext(events)
                assert (gone.metadata["worker_id"], gone.metadata["reason"]) == (worker.id, "heartbeat")
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            await until(lambda: not running(worker.pid))


async def calls_while(pool: sp.Pool, number: int, early: int, then: Any) -> set[str]:
    """So many calls from twenty callers, every other one idempotent; ``then`` happens when ``early`` have ended."""
    ends: list[str] = []

    async def call(value: int) -> None:
        try:
            assert await pool.execute("add", {"a": value, "b": 1}, idempotent=value % 2 == 0) == value + 1
            ends.append("ok")
        except sp.WorkerCrashed as exc:
            assert value % 2, "an idempotent one is run again"
            ends.append(exc.details["reason"])

    async def calls(start: int) -> None:
        for value in range(start, number, 20):
            await call(value)

    async with anyio.create_task_group() as nursery:
        for start in range(20):
            nursery.start_soon(calls, start)
        while len(ends) < early:
            await anyio.sleep(0.001)
        then()
    assert len(ends) == number
    stats = pool.stats()
    assert stats.accepted == stats.completed + stats.failed == number
    return set(ends)


@pytest.mark.parametrize("scaling", [False, True], ids=["fixed", "autoscaling"])
async def test_a_node_that_dies_under_load(cluster: Any, scaling: bool) -> None:
    """Its workers are replaced on the other, and each request has one end."""
    load = {"min_size": 1, "max_size": 2, "target_wait": 0.02, "scale_down_after": 600.0} if scaling else {}
    config = sp.RayConfig(resources={"num_cpus": 0.1, "here": 1})
    with added_node(cluster, resources={"here": 2}) as first, anyio.fail_after(LONG):
        async with sp.open_pool(
            BASIC, size=1 if scaling else 2, restart_limit=100, timeout=300, max_queue=None,
            **load, **on_ray(ray=config),
        ) as pool:  # fmt: skip
            with added_node(cluster, resources={"here": 4}):
                # The main thread has added a node, and nobody has read what workers said meanwhile.
                await pool.wait_ready(1)
                old = {worker.pid for worker in pool.workers()}
                ends = await calls_while(pool, 2000, 200, lambda: kill_node(cluster, first))
                # An actor may live long enough to tell that its worker was killed.
                assert ends <= {"ok", "node_lost", "killed", "connection_lost"}, ends
                await pool.wait_ready(1 if scaling else 2)
                assert await pool.execute("add", {"a": 1, "b": 2}, idempotent=True) == 3
                await until(lambda: not any(running(pid) for pid in old))
                assert old


async def test_it_grows_under_load_goes_to_none_and_wakes() -> None:
    with anyio.fail_after(LONG):
        async with sp.open_pool(
            BASIC,
            size=1,
            min_size=0,
            max_size=3,
            target_wait=0.05,
            scale_down_after=1.0,
            **on_ray(),
        ) as pool:
            async with pool.runtime.events.subscribe("pool.resized") as events:
                async with anyio.create_task_group() as nursery:
                    for _ in range(30):
                        nursery.start_soon(pool.execute, "sleep", {"seconds": 0.5})
                    assert (await anext(events)).measurements["size"] > 1
                while pool.stats().size:
                    await anext(events)
            assert pool.stats().completed == 30
            # An idle pool holds nothing of the cluster.
            await until(lambda: free("CPU") and not actors() and not workers_of_this_test())
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert pool.stats().size == 1


HOST = """
    import sys, anyio
    import snakepit_trio as sp

    address, backend, store, name = sys.argv[1:]

    async def main():
        config = sp.RayConfig(address=address, resources={"num_cpus": 0.1}, placement_group="PACK")
        pool = sp.PoolConfig(
            adapter="tests.adapters.basic", size=1, launcher="ray", ray=config, startup_timeout=180, health_interval=None
        )
        async with sp.open_runtime(sp.RuntimeConfig(pools=[pool], store=store)) as runtime:
            pool = runtime.pool("default")
            print(pool.workers()[0].pid, flush=True)
            async with pool.session("shared", ttl=600) as session:
                while line := await anyio.to_thread.run_sync(sys.stdin.readline):
                    word, _, value = line.strip().partition(" ")
                    if word == "put":
                        await session.put("key", value)
                        print("put", flush=True)
                    elif word == "get":
                        print(await session.get("key"), (await session.execute("whoami"))["session_id"], flush=True)

    anyio.run(main, backend=backend)
"""


async def test_hosts_share_a_cluster_and_their_sessions(cluster: Any, anyio_backend_name: str) -> None:
    """Each has a runtime and workers of its own; the one that is killed takes its own along, and nothing else."""
    with redis_server() as store, anyio.fail_after(LONG):
        arguments = (cluster.address, anyio_backend_name, store)
        async with (
            program(HOST, *arguments, "one") as (one, say_one),
            program(HOST, *arguments, "two") as (two, say_two),
        ):
            pids = [int(await say_one()), int(await say_two())]
            assert pids[0] != pids[1]
            assert len(actors()) == 2
            await tell(one, "put first")
            assert await say_one() == "put"
            await tell(two, "get")
            assert await say_two() == "first shared"
            await tell(two, "put second")
            assert await say_two() == "put"
            await tell(one, "get")
            assert await say_one() == "second shared"
            one.kill()
            await until(lambda: not running(pids[0]))
            await until(lambda: len(actors()) == 1)
            await tell(two, "get")
            assert await say_two() == "second shared"
            assert running(pids[1])


async def test_a_host_that_is_killed_leaves_nothing(cluster: Any, anyio_backend_name: str) -> None:
    """No worker, no actor, no placement group; whatever its workers were doing."""
    with anyio.fail_after(LONG):
        async with program(HOST, cluster.address, anyio_backend_name, "memory", "killed") as (process, line):
            worker = int(await line())
            children = psutil.Process(worker).children(recursive=True)
            os.kill(worker, signal.SIGSTOP)
            process.kill()
            await until(lambda: not any(running(pid) for pid in [worker, *(child.pid for child in children)]))
            await until(lambda: free("CPU") and not actors() and not workers_of_this_test())
            await until(lambda: all(g["state"] == "REMOVED" for g in ray.util.placement_group_table().values()))
