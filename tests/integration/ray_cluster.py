"""What the tests on Ray share: a cluster on this machine, and the check that nothing of a test is left on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import psutil
import pytest

import snakepit_trio as sp

ray = pytest.importorskip("ray", reason="Ray is not installed: nox -s ray")
pytest.importorskip("cryptography")
from ray.cluster_utils import Cluster  # noqa: E402

__all__ = [
    "BASIC",
    "SMALL",
    "Patient",
    "actors",
    "added_node",
    "cluster",
    "environment",
    "free",
    "kill_node",
    "marks",
    "nothing_left",
    "on_ray",
    "running",
    "workers_of_this_test",
]

BASIC = "tests.adapters.basic"
SMALL = {"num_cpus": 0.1}
#: What is small about each node.
NODE = {"num_cpus": 2, "object_store_memory": 80 * 1024 * 1024}
#: How long starts may take here: each is two interpreters, one of which imports Ray, and the machine may be busy.
START = 180.0
#: By how much longer the limits of other tests are here, which are there to end a test that hangs.
PATIENCE = 8.0
#: In the environment of all that this process has started, whoever its parent is by now.
_MARK = ("SNAKEPIT_TEST_RAY", secrets.token_hex(8))

#: For each module with tests on Ray.
marks = [
    pytest.mark.anyio,
    pytest.mark.timeout(600),
    # Ray's own, of the threads and sockets that it leaves to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node; a test may add others. This process is connected to it, as an application would be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(*_MARK)
        # Its sockets have long paths.
        patch.delenv("TMPDIR", raising=False)
        patch.setattr("tempfile.tempdir", None)
        head = {**NODE, "include_dashboard": False, "_system_config": {"worker_register_timeout_seconds": 180}}
        made = Cluster(initialize_head=True, head_node_args=head)
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
    """In place of the check of this process, in which Ray keeps connections and threads: no worker on any node, no
    actor, no placement group, and all resources free."""
    yield
    until = time.monotonic() + 30
    while (left := _left()) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left, left


def _left() -> list[str]:
    left = [f"worker {process.pid}" for process in workers_of_this_test()]
    if ray.is_initialized():
        left += [f"actor {name}" for name in actors()]
        groups = ray.util.placement_group_table()
        left += [f"placement group {name}" for name, group in groups.items() if group["state"] != "REMOVED"]
        left += [f"{name} in use" for name in ray.cluster_resources() if name in ("CPU", "GPU") and not free(name)]
    return left


def actors() -> list[str]:
    """The actors on the cluster that are not dead."""
    return [
        f"{actor['ActorClassName']} {actor['State']}"
        for actor in ray._private.state.actors().values()
        if actor["State"] != "DEAD"
    ]


def workers_of_this_test() -> list[psutil.Process]:
    """The worker processes on all nodes."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if "snakepit_trio.worker" in process.cmdline() and process.environ().get(_MARK[0]) == _MARK[1]:
                found.append(process)
    return found


def free(name: str) -> bool:
    """Whether nobody has taken any of a resource."""
    return abs(ray.available_resources().get(name, 0) - ray.cluster_resources().get(name, 0)) < 1e-3


def running(pid: int) -> bool:
    """Whether there is such a process that has not ended; whose parent is gone may stay a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def added_node(cluster: Any, **resources: Any) -> Iterator[Any]:
    """One node more, from the main thread as Ray wants it; the event loop can wait."""
    node = None
    for attempt in range(3):
        before = {child.pid for child in psutil.Process().children()}
        try:
            node = cluster.add_node(**{**NODE, **resources})
            break
        except Exception:
            # It gives a node 30 seconds, and forgets what it has started.
            for child in psutil.Process().children():
                if child.pid not in before:
                    child.kill()
            if attempt == 2:
                raise
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


def kill_node(cluster: Any, node: Any) -> None:
    """End a node with all its processes, without a word."""
    cluster.remove_node(node, allow_graceful=False)


def on_ray(**options: Any) -> dict[str, Any]:
    return {
        "launcher": "ray",
        "ray": sp.RayConfig(resources=SMALL),
        "startup_timeout": START,
        "queue_timeout": START,
        **options,
    }


class Patient:
    """anyio for the tests of local workers: with more time before a test is given up."""

    def __getattr__(self, name: str) -> Any:
        return getattr(anyio, name)

    def fail_after(self, delay: float | None, shield: bool = False) -> Any:
        return anyio.fail_after(None if delay is None else delay * PATIENCE, shield)


def environment(**more: str) -> Mapping[str, str]:
    """For a program that is started by a test."""
    return {**os.environ, "PYTHONPATH": os.fspath(os.path.abspath(os.path.join(__file__, *[os.pardir] * 3))), **more}
