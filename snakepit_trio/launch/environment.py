"""The environment of a worker process."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from snakepit_trio._config_checks import working_directory

from .base import WorkerSpec

__all__ = ["THREAD_VARIABLES", "import_path", "interpreter_environment", "worker_environment"]

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
    return environment


def interpreter_environment(spec: WorkerSpec) -> dict[str, str]:
    """The same for this interpreter, which must find this package before it knows what else to put on its path."""
    environment = worker_environment(spec)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    rest = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{rest}{os.pathsep}{package}" if rest else package
    return environment


def import_path(spec: WorkerSpec) -> list[str]:
    """What a worker of the same interpreter needs on ``sys.path`` to import what this process can import.

    Raises:
        ConfigError: The working directory is on it, and has been deleted.
    """
    if spec.python is not None:
        return []
    return [
        os.path.abspath(entry if os.path.isabs(entry) else os.path.join(working_directory(), entry))
        for entry in sys.path
    ]
