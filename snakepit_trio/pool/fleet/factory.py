"""Creates the workers of one pool: their specs, devices and shares of the shared memory."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import anyio.to_thread

from snakepit_trio._platform import has_shared_files
from snakepit_trio.hardware import detect, visibility
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.supervision.resources import Resources
from snakepit_trio.supervision.worker import Worker
from snakepit_trio.wire.memory import Budget

if TYPE_CHECKING:
    from snakepit_trio.config import PoolConfig

    from ..services import PoolServices
    from .dispatch import WorkerDispatch

__all__ = ["WorkerFactory"]

#: Bytes. Used in place of no limit.
_NO_LIMIT = 1 << 62


class WorkerFactory:
    """Creates the workers of one pool.

    Attributes:
        shm: The shared memory for values that the host sends.
    """

    def __init__(self, config: PoolConfig, services: PoolServices) -> None:
        self._config = config
        self._services = services
        self._devices = () if config.devices in (None, "auto") else config.devices
        limit = config.shm_limit if has_shared_files() else 0
        # One half is for values that the host sends, the other for the workers, in equal parts.
        self.shm: Budget = Budget(None if limit is None else limit // 2)
        workers = max(config.size, config.max_size or 0) + config.surge + config.spares
        self._shm_of_worker = _NO_LIMIT if limit is None else limit // 2 // workers

    async def open(self) -> None:
        """Detect the devices, if they are not configured."""
        if self._config.devices == "auto":
            hardware = await anyio.to_thread.run_sync(detect)
            self._devices = tuple(device.id for device in hardware.accelerators)

    def make(self, slot: int, incarnation: int, dispatch: WorkerDispatch) -> Worker:
        """Return a new worker for a slot, not yet started."""
        config, services = self._config, self._services
        device = self._devices[slot % len(self._devices)] if self._devices else None
        spec = WorkerSpec(
            worker_id=secrets.token_hex(6),
            run_id=services.run_id,
            pool=config.name,
            adapter=config.adapter or "",
            token=services.token,
            socket_dir=services.socket_dir if config.transport != "tcp" and services.launcher.same_machine else None,
            threads=config.threads,
            worker_backend=config.worker_backend,
            host_backend=services.backend,
            max_payload=config.max_payload,
            shm_limit=self._shm_of_worker,
            unserializable=config.unserializable,
            worker_output=config.worker_output,
            python=config.python,
            env=dict(config.env or {}),
            own_env={} if device is None else visibility(device),
            cwd=config.cwd,
            device=device,
        )
        resources = Resources(
            spec,
            config,
            launcher=services.launcher,
            wire=services.wire,
            request_prefix=dispatch.request_prefix,
            redact=services.redact,
            shm=self.shm,
        )
        return Worker(
            spec,
            settings=config,
            resources=resources,
            host=dispatch,
            errors=services.errors,
            slot=slot,
            incarnation=incarnation,
        )
