"""Random generators created in a template: in each process forked from it they must produce different numbers.

All generators known to the garbage collector are found: instances of :class:`random.Random` and its subclasses, numpy's
generators, bit generators and ``RandomState``, wherever they are stored; and the global generators of :mod:`random`,
numpy and torch. A generator that keeps its state in its own C code is not found.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["find_generators", "reseed"]


def find_generators() -> list[Any]:
    """Return the generators of this process; to be called before the collector's objects are frozen."""
    numpy = sys.modules.get("numpy.random")
    kinds = _with_subclasses(random.Random)
    # Bit generators first, because reseeding the others relies on them.
    for name in ("BitGenerator", "Generator", "RandomState"):
        kinds += _with_subclasses(getattr(numpy, name, None))
    # By identity, because a metaclass may refuse to be hashed, or do anything else.
    order = {id(kind): number for number, kind in enumerate(kinds)}
    found = (each for each in gc.get_objects() if id(type(each)) in order)
    return sorted(found, key=lambda each: order[id(type(each))])


def _with_subclasses(kind: Any) -> list[Any]:
    kinds = [kind] if isinstance(kind, type) else []
    for known in kinds:
        # Added classes are visited in turn.
        kinds += known.__subclasses__()
    return kinds


def reseed(generators: Iterable[Any]) -> None:
    """Seed these generators, and the global ones of the loaded libraries, from the system's entropy."""
    random.seed()
    for generator in generators:
        # A generator whose class needs more than a seed is not changed.
        with contextlib.suppress(Exception):
            if isinstance(generator, random.Random):
                generator.seed()
            elif hasattr(generator, "capsule"):
                # Initialised again in place, with the sequence from which it spawns others.
                generator.__init__()
            else:
                # It keeps its bit generator's lock, and perhaps a number that was already drawn.
                generator.__init__(getattr(generator, "bit_generator", None) or generator._bit_generator)
    torch = sys.modules.get("torch")
    if torch is not None:
        with contextlib.suppress(Exception):
            torch.default_generator.seed()
