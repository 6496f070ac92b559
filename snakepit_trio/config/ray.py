"""Configuration of workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from snakepit_trio._config_checks import check_types, refuse

__all__ = ["RayConfig"]


@attrs.frozen(kw_only=True)
class RayConfig:
    """Where on a Ray cluster the workers of a pool run; needs the extra ``ray``, here and there.

    Attributes:
        address: The cluster, as ``ray.init`` takes it: ``"auto"`` (by ``RAY_ADDRESS``, or one on this machine), ``"HOST:PORT"``,
            or ``"local"`` (one of its own, which ends with the runtime). Not used when the application has connected already.
        namespace: Of the runtime's connection; None: Ray makes one up.
        resources: What each worker takes: ``num_cpus``, ``num_gpus``, ``memory`` (bytes), and custom resources by their names.
        placement_group: Reserve the resources of the whole pool, ``surge`` and ``spares`` included, before any worker starts,
            and place them by this strategy of Ray's. None: each worker is placed by itself.
        runtime_env: Passed to Ray as it is.
    """

    address: str = "auto"
    namespace: str | None = None
    resources: Mapping[str, float] = attrs.field(factory=lambda: {"num_cpus": 1})
    placement_group: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] | None = None
    runtime_env: Mapping[str, Any] | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        check_types(self)
        if not self.address or self.address.startswith("ray://"):
            refuse("address", self.address, "'auto', 'local' or HOST:PORT; Ray's client (ray://) is not supported")
        for name, amount in self.resources.items():
            if not name or name in ("CPU", "GPU"):
                refuse("resources", name, "num_cpus, num_gpus, memory or the name of a custom resource")
            if not 0 <= amount < float("inf"):
                refuse(f"resources[{name!r}]", amount, "a number from 0")
            if name == "memory" and amount != int(amount):
                refuse("resources['memory']", amount, "whole bytes")
        if self.placement_group is not None and not any(self.resources.values()):
            refuse("placement_group", self.placement_group, "resources to reserve")
