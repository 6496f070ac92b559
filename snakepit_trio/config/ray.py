"""The options of workers on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from snakepit_trio._config_checks import Options, check_types, refuse

__all__ = ["RayConfig"]


@attrs.frozen(kw_only=True)
class RayConfig(Options):
    """The Ray cluster of a pool's workers, and their resources; needs the extra ``ray`` on the host and on the nodes.

    Attributes:
        address: The cluster, as for ``ray.init``: ``"auto"`` (``RAY_ADDRESS``, or a cluster on this machine),
            ``"HOST:PORT"``, or ``"local"`` (a new cluster that ends with the runtime). Ignored if the application has
            already connected.
        namespace: The namespace of the runtime's connection. None: Ray generates one.
        resources: The resources of each worker: ``num_cpus``, ``num_gpus``, ``memory`` (bytes), and custom resources by
            name.
        placement_group: Reserve the resources of the whole pool, including ``surge`` and ``spares``, before any worker
            starts, and place the workers by this Ray strategy. None: each worker is placed individually.
        runtime_env: Passed to Ray unchanged.
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
