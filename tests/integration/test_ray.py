"""Workers on a Ray cluster: the tests of local workers over again, and what only a cluster can do. Needs Ray."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp
from tests.integration import (
    test_cancellation,
    test_host_tools,
    test_main_path,
    test_promises,
    test_sessions,
    test_supervision,
)

ray = pytest.importorskip("ray", reason="Ray is not installed: nox -s ray")
pytest.importorskip("cryptography")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [
    pytest.mark.anyio,
    # Ray's own, of the threads and sockets that it leaves to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

BASIC = "tests.adapters.basic"
SMALL = {"num_cpus": 0.1}
#: What is small about each node.
NODE = {"num_cpus": 2, "object_store_memory": 80 * 1024 * 1024}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node; a test may add others. This process is connected to it, as an application would be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Its sockets have long paths.
        patch.delenv("TMPDIR", raising=False)
        patch.setattr("tempfile.tempdir", None)
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            ray.init(address=made.address, log_to_driver=False, configure_logging=False)
            try:
                yield made
            finally:
                ray.shutdown()
        finally:
            made.shutdown()


@pytest.fixture(autouse=True)
def nothing_left(cluster: Any) -> Iterator[None]:
    """In place of the check of this process, in which Ray keeps connections and threads: no worker on any node."""
    yield
    left = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "snakepit_trio.worker" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    psutil.wait_procs(left, timeout=0.5)
    assert not [process for process in left if process.is_running()], "workers were left behind"


def running(pid: int) -> bool:
    """Whether there is such a process that has not ended; whose parent is gone may stay a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def same(amount: float | None, expected: float) -> bool:
    return amount is not None and abs(amount - expected) < 1e-3


def on_ray(**options: Any) -> dict[str, Any]:
    return {"launcher": "ray", "ray": sp.RayConfig(resources=SMALL), **options}


AGAIN: list[Callable[..., Any]] = [
    test_main_path.test_a_result_and_what_the_context_says,
    test_main_path.test_a_remote_exception_has_its_type_and_traceback,
    test_main_path.test_unknown_and_misused_tools,
    test_main_path.test_values_cross_the_border_exactly,
    test_main_path.test_streams,
    test_main_path.test_what_a_consumer_raises_leaves_unwrapped,
    test_main_path.test_map,
    test_main_path.test_cancel_reaches_a_sync_tool,
    test_main_path.test_a_timeout_comes_in_time_and_costs_the_worker_of_a_deaf_tool,
    test_main_path.test_a_killed_worker_is_replaced_and_its_call_fails_with_the_reason,
    test_main_path.test_an_idempotent_call_is_run_again_and_a_poisonous_one_is_not,
    test_main_path.test_threads_really_overlap,
    test_main_path.test_closing_lets_running_calls_end_and_ends_the_rest,
    test_main_path.test_a_cancelled_body_leaves_nothing,
    test_main_path.test_opening_can_be_cancelled,
    test_main_path.test_worker_output_goes_to_the_log,
    test_cancellation.test_a_paused_reader_pauses_the_generator,
    test_cancellation.test_the_deadline_is_spent_by_waiting_and_seen_by_the_tool,
    test_promises.test_how_a_worker_died_and_its_last_words,
    test_promises.test_a_worker_that_says_why_it_can_not_start_was_not_killed_by_a_signal,
    test_supervision.test_a_frozen_worker_is_found_and_replaced,
    test_supervision.test_a_call_that_had_not_begun_is_run_elsewhere,
    test_supervision.test_resize_rolling_restart_recycle_and_cordon,
    test_sessions.test_a_lost_worker_by_affinity_and_on_lost,
    test_sessions.test_calls_that_run_or_wait_for_a_strict_worker_that_dies,
    test_sessions.test_a_session_ends_with_its_block,
    test_host_tools.test_every_kind_of_value_goes_there_and_comes_back,
    test_host_tools.test_a_dying_worker_ends_its_host_tools_and_its_request_does_not_wait_for_them,
]


@pytest.mark.parametrize("test", AGAIN, ids=lambda test: test.__name__.removeprefix("test_"))
async def test_as_local_ones(
    test: Callable[..., Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bodies of other tests, with every pool on Ray."""
    real = sp.PoolConfig

    def pool_config(**options: Any) -> sp.PoolConfig:
        return real(**on_ray(**options))

    def open_pool(adapter: str, **options: Any) -> Any:
        return sp.runtime.open_pool(adapter, **on_ray(**options))  # type: ignore[attr-defined]

    monkeypatch.setattr(sp, "open_pool", open_pool)
    monkeypatch.setattr(sp, "PoolConfig", pool_config)
    given = {name: request.getfixturevalue(name) for name in inspect.signature(test).parameters}
    await test(**given)


async def test_arrays_and_bytes_go_inline() -> None:
    numpy = pytest.importorskip("numpy")
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, **on_ray()) as pool:
            array = numpy.arange(1_000_000, dtype="f8")
            assert (await pool.execute("echo", {"value": array}) == array).all()
            data = os.urandom(3_000_000)
            assert await pool.execute("echo", {"value": data}) == data


async def test_what_ray_can_not_place_says_what_was_asked_for() -> None:
    asked = sp.RayConfig(resources={"num_cpus": 64, "num_gpus": 0.25, "tpu": 1})
    with anyio.fail_after(60):
        with pytest.raises(sp.WorkerStartupError, match=r"num_cpus=64, num_gpus=0\.25, tpu=1") as caught:
            async with sp.open_pool(BASIC, size=1, startup_timeout=1, **on_ray(ray=asked)):
                pass
        assert caught.value.details["exit"] == "startup_timeout"


async def test_an_adapter_that_can_not_start_says_why() -> None:
    with anyio.fail_after(60):
        with pytest.raises(sp.WorkerStartupError, match="RuntimeError: no such device"):
            async with sp.open_pool("tests.adapters.broken_setup", size=1, **on_ray()):
                pass
        with pytest.raises(sp.WorkerStartupError, match="could not start /nowhere/python"):
            async with sp.open_pool(BASIC, size=1, python="/nowhere/python", **on_ray()):
                pass


async def test_the_resources_are_taken_and_given_back() -> None:
    with anyio.fail_after(60):
        whole = ray.cluster_resources()["CPU"]
        # Those of the last test are given back soon after its end.
        while not same(ray.available_resources().get("CPU"), whole):
            await anyio.sleep(0.05)
        config = sp.RayConfig(resources={"num_cpus": 0.5}, placement_group="PACK")
        async with sp.open_pool(BASIC, size=1, **on_ray(ray=config)) as pool:
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            # One and its surge.
            while not same(ray.available_resources().get("CPU"), whole - 1):
                await anyio.sleep(0.05)
        while not same(ray.available_resources().get("CPU"), whole):
            await anyio.sleep(0.05)


async def test_the_runtime_env_reaches_the_worker() -> None:
    config = sp.RayConfig(resources=SMALL, runtime_env={"env_vars": {"GREETING": "hello"}})
    with anyio.fail_after(60):
        async with sp.open_pool(BASIC, size=1, **on_ray(ray=config)) as pool:
            assert (await pool.execute("environment", {"name": "GREETING"})) == "hello"


async def test_the_workers_actor_ends_and_its_worker_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """The lifeline is held by the actor's process."""
    with anyio.fail_after(60), caplog.at_level(logging.WARNING):
        async with sp.open_pool(BASIC, size=1, **on_ray()) as pool:
            (worker,) = pool.workers()
            actor = psutil.Process(worker.pid).parent()
            assert actor is not None
            running: list[BaseException] = []

            async def call() -> None:
                try:
                    await pool.execute("sleep", {"seconds": 60})
                except sp.WorkerCrashed as exc:
                    running.append(exc)

            async with anyio.create_task_group() as nursery:
                nursery.start_soon(call)
                while not pool.stats().in_flight:
                    await anyio.sleep(0.01)
                actor.kill()
            assert running[0].details["reason"] == "node_lost"  # type: ignore[attr-defined]
            assert await pool.execute("add", {"a": 1, "b": 2}) == 3
            assert pool.workers()[0].pid != worker.pid
            assert not running(worker.pid)


async def test_a_node_that_dies_under_load(cluster: Any) -> None:
    """Its workers are replaced on the other, and each request has one end."""
    # Ray adds nodes from the main thread only; the event loop can wait.
    first = cluster.add_node(**NODE, resources={"here": 2})
    second = None
    try:
        with anyio.fail_after(100):
            config = sp.RayConfig(resources={"num_cpus": 0.1, "here": 1})
            async with sp.open_pool(
                BASIC, size=2, startup_timeout=60, restart_limit=20, timeout=60, max_queue=None, queue_timeout=None, **on_ray(ray=config)
            ) as pool:  # fmt: skip
                second = cluster.add_node(**NODE, resources={"here": 2})
                ends: list[str] = []
                old = {worker.pid for worker in pool.workers()}

                async def call(number: int) -> None:
                    try:
                        assert (
                            await pool.execute("add", {"a": number, "b": 1}, idempotent=number % 2 == 0) == number + 1
                        )
                        ends.append("ok")
                    except sp.WorkerCrashed as exc:
                        assert number % 2, "an idempotent one is run again"
                        ends.append(exc.details["reason"])

                async def calls(start: int) -> None:
                    for number in range(start, 2000, 20):
                        await call(number)

                async with anyio.create_task_group() as nursery:
                    for start in range(20):
                        nursery.start_soon(calls, start)
                    while len(ends) < 200:
                        await anyio.sleep(0.001)
                    cluster.remove_node(first, allow_graceful=False)
                    first = None
                assert len(ends) == 2000
                # An actor may live long enough to tell that its worker was killed.
                assert set(ends) <= {"ok", "node_lost", "killed"}, set(ends)
                stats = pool.stats()
                assert stats.accepted == stats.completed + stats.failed == 2000
                await pool.wait_ready(2)
                assert not old & {worker.pid for worker in pool.workers()}
                while any(running(pid) for pid in old):
                    await anyio.sleep(0.01)
    finally:
        for node in (first, second):
            if node is not None:
                cluster.remove_node(node)


async def test_a_runtime_that_connects_itself_leaves_nothing(cluster: Any, tmp_path: Path, anyio_backend: str) -> None:
    """In a process of its own: not connected before, nor afterwards; no word on its standard output."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, anyio, ray
            import snakepit_trio as sp
            from snakepit_trio.testing.leaks import Footprint

            async def main():
                config = sp.RayConfig(address=sys.argv[1], resources={"num_cpus": 0.1})
                async with sp.open_pool("tests.adapters.basic", size=1, launcher="ray", ray=config) as pool:
                    assert await pool.execute("add", {"a": 1, "b": 2}) == 3
                    assert ray.is_initialized()
                assert not ray.is_initialized()

            # Ray itself leaves descriptors open, so only these are compared.
            before = Footprint.take()
            anyio.run(main, backend=sys.argv[2])
            after = Footprint.take()
            assert (after.children, after.threads) == (before.children, before.threads), after
            """
        )
    )
    command = [sys.executable, "-W", "ignore", str(program), cluster.address, anyio_backend]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with anyio.fail_after(60):
        done = await anyio.run_process(command, env=environment, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b""
    # What Ray says of nodes that died earlier can't be turned off.
    assert b"snakepit" not in done.stderr and b"SIGTERM" not in done.stderr


async def test_a_host_that_is_killed_leaves_no_worker(cluster: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, trio
            import snakepit_trio as sp

            async def main():
                config = sp.RayConfig(address=sys.argv[1], resources={"num_cpus": 0.1})
                async with sp.open_pool("tests.adapters.basic", size=1, launcher="ray", ray=config) as pool:
                    print(pool.workers()[0].pid, flush=True)
                    await trio.sleep_forever()

            trio.run(main)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with anyio.fail_after(60):
        async with await anyio.open_process(
            [sys.executable, str(program), cluster.address], env=environment, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            worker = psutil.Process(int(await process.stdout.receive()))
            os.kill(process.pid, signal.SIGKILL)
            with anyio.fail_after(30):
                while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
                    await anyio.sleep(0.01)


async def test_a_cluster_that_is_not_there() -> None:
    program = "import anyio, sys, snakepit_trio as sp\n"
    program += "async def main():\n"
    program += "    async with sp.open_pool('tests.adapters.basic', size=1, launcher='ray', ray=sp.RayConfig(address='127.0.0.1:9')):\n"
    program += "        pass\n"
    program += "try: anyio.run(main)\nexcept sp.WorkerStartupError as exc: print(exc.message)\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with anyio.fail_after(60):
        done = await anyio.run_process([sys.executable, "-c", program], env=environment)
    assert b"no Ray cluster at '127.0.0.1:9'" in done.stdout
