"""The environment of a worker process."""

from __future__ import annotations

import os
from collections.abc import Mapping

from snakepit_trio import _platform

from .base import WorkerSpec

__all__ = ["THREAD_VARIABLES", "worker_environment"]

#: The variables by which numeric libraries choose their number of threads: one thread per core in every worker is too
#: many.
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
    """Return the environment of a worker: the inherited one, overridden by the library's variables, overridden by the
    user's.

    A thread-count variable that is already set, here or by the user, takes precedence.
    """
    environment = dict(os.environ if inherited is None else inherited)
    for name in THREAD_VARIABLES:
        environment.setdefault(name, str(spec.threads))
    environment["SNAKEPIT_RUN_ID"] = spec.run_id
    environment["SNAKEPIT_WORKER_ID"] = spec.worker_id
    environment["PYTHONUNBUFFERED"] = "1"
    environment.update(spec.env)
    # Use the host's platform form, even if the variable has changed since, because the two hold each other's processes.
    environment.pop(_platform.VARIABLE, None)
    if _platform.FORM == "portable":
        environment[_platform.VARIABLE] = "1"
    return environment
