"""Detection of cores, memory and accelerators from the system's files and libraries, never by a shell.

A container may use less than its machine has, so the limits of control groups count:
https://docs.kernel.org/admin-guide/cgroup-v2.html (``cpu.max``, ``memory.max``), and the ``cpu.cfs_*`` and
``memory.limit_in_bytes`` files of version 1.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

__all__ = ["Accelerator", "Cpu", "Hardware", "Memory", "control_groups", "detect", "visibility"]

#: cgroup v1 writes a number of this order for no limit.
_NO_LIMIT_V1 = 1 << 60
#: The environment variable that restricts a process to some devices, by kind.
_VARIABLES = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}
#: AMD's vendor number in sysfs.
_AMD = "0x1002"
_NVML_NAME, _NVML_UUID = 96, 96


@attrs.frozen(kw_only=True)
class Cpu:
    """The processor.

    Attributes:
        model: The model name; empty if unknown.
        logical: The machine's number of hardware threads.
        affinity: The number of hardware threads that this process may run on.
        quota: The CPU seconds per second that this process's control group may use; None: no limit.
    """

    model: str
    logical: int
    affinity: int
    quota: float | None

    @property
    def usable(self) -> int:
        """The number of workers that can run in parallel; at least 1."""
        return self.affinity if self.quota is None else max(1, min(self.affinity, math.ceil(self.quota)))


@attrs.frozen(kw_only=True)
class Memory:
    """Main memory, in bytes.

    Attributes:
        total: The machine's memory.
        available: The memory available now without swapping.
        limit: The limit of this process's control group; None: no limit.
    """

    total: int
    available: int
    limit: int | None

    @property
    def usable(self) -> int:
        """The largest amount that this process and its workers may use."""
        return self.total if self.limit is None else min(self.total, self.limit)


@attrs.frozen(kw_only=True)
class Accelerator:
    """A device that can be assigned to a worker.

    Attributes:
        kind: ``"cuda"``, ``"rocm"`` or ``"mps"``.
        index: Its number among the devices of its kind.
        name: The model name.
        memory: Bytes of its own memory; None if unknown.
        uuid: Its identity, if it has one.
    """

    kind: str
    index: int
    name: str = ""
    memory: int | None = None
    uuid: str = ""

    @property
    def id(self) -> str:
        """The name in ``PoolConfig.devices``, such as ``"cuda:0"``."""
        return f"{self.kind}:{self.index}"


@attrs.frozen(kw_only=True)
class Hardware:
    """The part of a machine that this process may use."""

    system: str
    machine: str
    cpu: Cpu
    memory: Memory
    accelerators: tuple[Accelerator, ...]


def detect() -> Hardware:
    """Detect the hardware. Blocks for milliseconds. Unreadable parts are omitted; nothing is raised for them."""
    return _detect(Path("/"), os.environ)


def visibility(device: str) -> dict[str, str]:
    """Return the environment that restricts a process to one device, such as ``"cuda:0"``; empty for a kind without such a
    variable.

    Raises:
        ValueError: The string does not name a device.
    """
    kind, _, which = device.partition(":")
    if not kind.isalnum() or not which or not all(c.isalnum() or c in "-_/" for c in which):
        raise ValueError(f"{device!r} does not name a device; expected KIND:NUMBER, such as 'cuda:0'")
    name = _VARIABLES.get(kind)
    return {} if name is None else {name: which}


def _detect(root: Path, environ: Mapping[str, str]) -> Hardware:
    import psutil

    groups = list(control_groups(root))
    memory = psutil.virtual_memory()
    limits = [limit for group in groups if (limit := _memory_limit(group)) is not None]
    return Hardware(
        system=platform.system(),
        machine=platform.machine(),
        cpu=Cpu(
            model=_cpu_model(root),
            logical=os.cpu_count() or 1,
            affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            quota=min((quota for group in groups if (quota := _cpu_quota(group)) is not None), default=None),
        ),
        memory=Memory(total=memory.total, available=memory.available, limit=min(limits, default=None)),
        accelerators=(*_cuda(root, environ), *_rocm(root, environ), *_mps()),
    )


# ---- control groups ----------------------------------------------------------------------------------


def control_groups(root: Path = Path("/")) -> Iterator[Path]:
    """Yield the directories of this process's control groups and their parents; the narrowest limit counts."""
    base = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        names = controllers.split(",") if controllers else []
        if names and not {"cpu", "memory", "pids"} & set(names):
            continue
        top = base / controllers if names else base
        if names and not top.is_dir():
            top = base / next(name for name in names if name in ("cpu", "memory", "pids"))
        folder = top / path.lstrip("/")
        # In a container the path may be the machine's, and only the top exists.
        yield from [folder, *folder.parents][: len(folder.relative_to(top).parts) + 1]


def _cpu_quota(group: Path) -> float | None:
    fields = _read(group / "cpu.max").split()
    if not fields:
        fields = [_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()]
    try:
        quota, period = int(fields[0]), int(fields[1])
    except (ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_limit(group: Path) -> int | None:
    text = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
    try:
        limit = int(text)
    except ValueError:
        return None
    return limit if limit < _NO_LIMIT_V1 else None


def _cpu_model(root: Path) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Processor"):
            return value.strip()
    return platform.processor()


# ---- accelerators --------------------------------------------------------------------------------------


def _cuda(root: Path, environ: Mapping[str, str]) -> list[Accelerator]:
    return _visible(_nvml() or list(_nvidia_driver(root)), environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(found: list[Accelerator], restriction: str | None) -> list[Accelerator]:
    """Return the devices that this process may use, by number or by the beginning of the uuid; the first unknown one ends
    the list.

    See https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars.
    """
    if restriction is None:
        return found
    chosen = []
    for entry in restriction.split(","):
        name = entry.strip()
        match = [device for device in found if str(device.index) == name or (name and device.uuid.startswith(name))]
        if len(match) != 1:
            break
        chosen += match
    return chosen


def _nvml() -> list[Accelerator]:
    """Detect devices with NVIDIA's management library, which needs no CUDA context:
    https://docs.nvidia.com/deploy/nvml-api/
    """
    import ctypes

    try:
        library = ctypes.CDLL("libnvidia-ml.so.1" if sys.platform != "win32" else "nvml.dll")
        if library.nvmlInit_v2() != 0:
            return []
    except (OSError, AttributeError):
        return []
    try:
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
                continue
            name, uuid = ctypes.create_string_buffer(_NVML_NAME), ctypes.create_string_buffer(_NVML_UUID)
            memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
            library.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NVML_NAME))
            library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(_NVML_UUID))
            known = library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
            found.append(
                Accelerator(
                    kind="cuda",
                    index=index,
                    name=name.value.decode(errors="replace"),
                    memory=memory[0] if known else None,
                    uuid=uuid.value.decode(errors="replace"),
                )
            )
        return found
    finally:
        library.nvmlShutdown()


def _nvidia_driver(root: Path) -> Iterator[Accelerator]:
    """Detect devices in the driver's files in ``/proc``, if NVIDIA's library is missing."""
    for index, path in enumerate(sorted(_folders(root / "proc/driver/nvidia/gpus"))):
        lines = [line.partition(":") for line in _read(path / "information").splitlines()]
        facts = {name.strip(): value.strip() for name, _, value in lines}
        yield Accelerator(kind="cuda", index=index, name=facts.get("Model", ""), uuid=facts.get("GPU UUID", ""))


def _rocm(root: Path, environ: Mapping[str, str]) -> list[Accelerator]:
    """Detect nodes of AMD's compute driver with shader cores; their memory comes from the graphics card at the same place.

    See https://docs.kernel.org/gpu/amdgpu/ and ``/sys/class/kfd``.
    """
    cards: dict[str, int] = {}
    for card in sorted(_folders(root / "sys/class/drm")):
        size = _read(card / "device/mem_info_vram_total").strip()
        if _read(card / "device/vendor").strip() == _AMD and size.isdigit():
            cards[_read(card / "device/unique_id").strip()] = int(size)
    found: list[Accelerator] = []
    nodes = _folders(root / "sys/class/kfd/kfd/topology/nodes")
    for node in sorted(nodes, key=lambda path: int(path.name) if path.name.isdigit() else 0):
        facts = dict(line.split(None, 1) for line in _read(node / "properties").splitlines() if " " in line)
        if not int(facts.get("simd_count", "0") or 0):
            continue
        unique = f"{int(facts.get('unique_id', '0') or 0):x}"
        found.append(
            Accelerator(
                kind="rocm",
                index=len(found),
                name=_read(node / "name").strip(),
                memory=cards.get(unique),
                uuid=f"GPU-{unique}" if unique != "0" else "",
            )
        )
    return _visible(found, environ.get("HIP_VISIBLE_DEVICES", environ.get("ROCR_VISIBLE_DEVICES")))


def _mps() -> list[Accelerator]:
    """Detect the GPU of Apple's processors, which shares main memory."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return [Accelerator(kind="mps", index=0, name="Apple GPU")]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _folders(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []
