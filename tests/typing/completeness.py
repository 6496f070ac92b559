"""How much of the public surface has types that every checker reads in the same way.

``pyright --verifytypes`` takes each module without an underscore for a public one. This also counts what docs/architecture.md lists:
the names of the public modules, and the public members of the classes behind them. Run by ``nox -s types``.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from typing import Any

__all__ = ["MODULES", "main"]

#: The public modules.
MODULES = (
    "snakepit_trio",
    "snakepit_trio.errors",
    "snakepit_trio.hardware",
    "snakepit_trio.launchers",
    "snakepit_trio.testing",
)
#: The least that is good enough.
_LEAST = 0.99


def _public_names() -> set[str]:
    """Every public name, also by the module that it is made in."""
    found = set()
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if not isinstance(value, types.ModuleType):
                found.add(f"{module.__name__}.{name}")
                if hasattr(value, "__qualname__"):
                    found.add(f"{value.__module__}.{value.__qualname__}")
    return found


def _is_public(symbol: str, names: set[str]) -> bool:
    parts = symbol.split(".")
    return any(".".join(parts[:end]) in names for end in range(2, len(parts) + 1))


def main() -> int:
    """Print what is not complete, and the score. 0: it is good enough."""
    done = subprocess.run(
        ["pyright", "--verifytypes", "snakepit_trio", "--ignoreexternal", "--outputjson"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    report: dict[str, Any] = json.loads(done.stdout)["typeCompleteness"]
    names = _public_names()
    symbols = [symbol for symbol in report["symbols"] if _is_public(symbol["name"], names)]
    bad = [symbol for symbol in symbols if symbol["isTypeAmbiguous"] or not symbol["isTypeKnown"]]
    for symbol in bad:
        print(symbol["name"], *(found["message"] for found in symbol["diagnostics"]), sep="\n    ")
    if not symbols:
        print(f"pyright has found nothing: {done.stdout[:1000]}{done.stderr[:1000]}")
        return 1
    score = 1 - len(bad) / len(symbols)
    every = report["completenessScore"]
    print(f"public: {score:.2%} of {len(symbols)} symbols; every module: {every:.2%}")
    return 0 if min(score, every) > _LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
