"""The environment of a worker process."""

from __future__ import annotations

import os
from collections.abc import Mapping

from snakepit_trio import _platform

from .base import WorkerSpec

__all__ = ["THREAD_VARIABLES", "worker_environment"]

#: How numeric libraries learn how many threads to start: with many workers, each starting one per core is ruinous.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)


def worker_environment(spec: WorkerSpec, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the worker finds in ``os.environ``: what is inherited, our own on top, the user's on top of that.

    A thread-count variable that is set already, here or by the user, wins.
    """
    environment = dict(os.environ if inherited is None else inherited)
    for name in THREAD_VARIABLES:
        environment.setdefault(name, str(spec.threads))
    environment["SNAKEPIT_RUN_ID"] = spec.run_id
    environment["SNAKEPIT_WORKER_ID"] = spec.worker_id
    environment["PYTHONUNBUFFERED"] = "1"
    environment.update(spec.env)
    # In the host's form, whatever has become of the variable since: they hold processes for each other.
    environment.pop(_platform.VARIABLE, None)
    if _platform.FORM == "portable":
        environment[_platform.VARIABLE] = "1"
    return environment
