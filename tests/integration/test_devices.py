"""Workers that are tied to devices, of which this machine needs none: what counts is what the workers are told."""

from __future__ import annotations

import pytest

import snakepit_trio as sp

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("start_method", ["fork_server", "spawn"])
async def test_each_slot_keeps_its_device(start_method: str) -> None:
    async with sp.open_pool(
        "tests.adapters.basic", size=3, devices=["cuda:0", "rocm:5"], start_method=start_method
    ) as pool:

        async def told(name: str, worker: sp.WorkerInfo) -> str | None:
            others = [other.id for other in pool.workers() if other.id != worker.id]
            for other in others:
                pool.cordon(other)
            value: str | None = await pool.execute("environment", {"name": name})
            for other in others:
                pool.cordon(other, cordoned=False)
            return value

        for _ in range(2):
            for worker in pool.workers():
                device, variable = (
                    ("rocm:5", "HIP_VISIBLE_DEVICES") if worker.slot == 1 else ("cuda:0", "CUDA_VISIBLE_DEVICES")
                )
                assert worker.device == device
                assert await told(variable, worker) == device.partition(":")[2]
            await pool.recycle(pool.workers()[1].id)


async def test_what_the_user_says_of_the_variable_wins() -> None:
    async with sp.open_pool(
        "tests.adapters.basic", size=1, devices=["cuda:0"], env={"CUDA_VISIBLE_DEVICES": "7"}
    ) as pool:
        assert await pool.execute("environment", {"name": "CUDA_VISIBLE_DEVICES"}) == "7"


async def test_auto_on_a_machine_without_any() -> None:
    if sp.hardware.detect().accelerators:
        pytest.skip("this machine has accelerators")
    async with sp.open_pool("tests.adapters.basic", size=1, devices="auto") as pool:
        assert pool.workers()[0].device is None
