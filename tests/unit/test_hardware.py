"""What is read of a machine's files, and from a management library that is compiled for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import snakepit_trio as sp
from snakepit_trio import hardware


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_this_machine() -> None:
    found = sp.hardware.detect()
    assert 1 <= found.cpu.usable <= found.cpu.affinity <= found.cpu.logical
    assert 0 < found.memory.available <= found.memory.total
    assert 0 < found.memory.usable <= found.memory.total
    assert len({device.id for device in found.accelerators}) == len(found.accelerators)


def test_limits_of_a_control_group_of_version_2_and_of_those_above_it(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
            "sys/fs/cgroup/outer/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/memory.max": "1073741824\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: A Fine One\n",
        },
    )
    found = hardware._detect(root, {})
    assert found.cpu.quota == 1.5
    assert found.cpu.usable == min(found.cpu.affinity, 2)
    assert found.cpu.model == "A Fine One"
    assert found.memory.limit == found.memory.usable == 1 << 30


def test_limits_of_version_1_and_files_that_make_no_sense(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/a\n3:cpu,cpuacct:/a\n2:cpuset:/a\nnonsense\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "many\n",
        },
    )
    found = hardware._detect(root, {})
    assert (found.cpu.quota, found.cpu.usable) == (0.5, 1)
    assert found.memory.limit is None
    assert hardware._detect(tmp_path / "nothing", {}).cpu.quota is None


def test_accelerators_of_both_makers(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t Tesla T4\nGPU UUID: \t GPU-aaaa\n",
            "proc/driver/nvidia/gpus/0000:02:00.0/information": "Model: \t\t Tesla T4\nGPU UUID: \t GPU-bbbb\n",
            "sys/class/kfd/kfd/topology/nodes/0/properties": "simd_count 0\n",
            "sys/class/kfd/kfd/topology/nodes/1/properties": "simd_count 440\nunique_id 43981\n",
            "sys/class/kfd/kfd/topology/nodes/1/name": "gfx90a\n",
            "sys/class/drm/card1/device/vendor": "0x1002\n",
            "sys/class/drm/card1/device/unique_id": "abcd\n",
            "sys/class/drm/card1/device/mem_info_vram_total": "68702699520\n",
        },
    )
    one, two, three = hardware._detect(root, {}).accelerators
    assert (one.id, one.name, one.memory, two.uuid) == ("cuda:0", "Tesla T4", None, "GPU-bbbb")
    assert (three.id, three.name, three.memory, three.uuid) == ("rocm:0", "gfx90a", 68702699520, "GPU-abcd")

    def seen(value: str) -> list[str]:
        return [device.id for device in hardware._detect(root, {"CUDA_VISIBLE_DEVICES": value}).accelerators]

    assert seen("1") == ["cuda:1", "rocm:0"]
    assert seen("GPU-b,0") == ["cuda:1", "cuda:0", "rocm:0"]
    assert seen("GPU-") == seen("") == seen("-1") == ["rocm:0"]
    assert seen("0,7,1") == ["cuda:0", "rocm:0"]


NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(0x7f0000000000UL + i); return i > 1; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "Fake", n); return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { strncpy(s, (unsigned long)h & 1 ? "GPU-1" : "GPU-0", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) { m[0] = 17179869184ULL; m[1] = m[2] = 1; return 0; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None or sys.platform != "linux", reason="needs gcc")
def test_the_management_library_is_asked_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True, timeout=60)
    code = "from snakepit_trio.hardware import _nvml; print([(d.id, d.name, d.memory, d.uuid) for d in _nvml()])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
    )  # fmt: skip
    assert eval(done.stdout) == [("cuda:0", "Fake", 1 << 34, "GPU-0"), ("cuda:1", "Fake", 1 << 34, "GPU-1")], done


def test_what_ties_a_process_to_a_device() -> None:
    assert hardware.visibility("cuda:3") == {"CUDA_VISIBLE_DEVICES": "3"}
    assert hardware.visibility("rocm:GPU-ab") == {"HIP_VISIBLE_DEVICES": "GPU-ab"}
    assert hardware.visibility("mps:0") == {}
    for wrong in ("", "cuda", "cuda:", "cuda:0,1", ":1", "cuda:\n"):
        with pytest.raises(ValueError, match="does not name a device"):
            hardware.visibility(wrong)


@pytest.mark.parametrize("devices", [(), ["cuda"], [1], "all", ["cuda:0", "cuda:0;x"]])
def test_devices_that_are_refused(devices: object) -> None:
    with pytest.raises(sp.ConfigError, match="devices"):
        sp.PoolConfig(adapter="m", devices=devices)


def test_devices_from_a_file_and_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\nadapter = "m"\ndevices = ["cuda:0", "cuda:1"]\n')
    assert sp.RuntimeConfig.load(path, environ={}).pools[0].devices == ("cuda:0", "cuda:1")
    environ = {"SNAKEPIT_POOLS__DEFAULT__DEVICES": "cuda:2, cuda:3"}
    assert sp.RuntimeConfig.load(path, environ=environ).pools[0].devices == ("cuda:2", "cuda:3")
    with pytest.raises(sp.ConfigError, match="spares"):
        sp.PoolConfig(adapter="m", devices="auto", spares=1)
