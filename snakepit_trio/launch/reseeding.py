"""Random generators that a template has made: in each process that is forked from it they must give other numbers.

Found are all that the collector knows: instances of :class:`random.Random` and its subclasses, numpy's generators, bit generators
and ``RandomState``, wherever they are kept; and the generators of :mod:`random`, numpy and torch that a program uses without
making one. Not found is what keeps its state in C code of its own.
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
    """The generators of this process; to be called before the collector's objects are frozen."""
    numpy = sys.modules.get("numpy.random")
    kinds = _with_subclasses(random.Random)
    # Bit generators first: reseeding the others relies on it.
    for name in ("BitGenerator", "Generator", "RandomState"):
        kinds += _with_subclasses(getattr(numpy, name, None))
    # By identity: a metaclass of somebody's may refuse to be hashed, or do anything else.
    order = {id(kind): number for number, kind in enumerate(kinds)}
    found = (each for each in gc.get_objects() if id(type(each)) in order)
    return sorted(found, key=lambda each: order[id(type(each))])


def _with_subclasses(kind: Any) -> list[Any]:
    kinds = [kind] if isinstance(kind, type) else []
    for known in kinds:
        # What is added here is looked at in its turn.
        kinds += known.__subclasses__()
    return kinds


def reseed(generators: Iterable[Any]) -> None:
    """Seed these from the system's entropy, and the global ones of the libraries that are there."""
    random.seed()
    for generator in generators:
        # One of a class that wants more than a seed is left as it is.
        with contextlib.suppress(Exception):
            if isinstance(generator, random.Random):
                generator.seed()
            elif hasattr(generator, "capsule"):
                # Made anew in place, with the sequence from which it spawns others.
                generator.__init__()
            else:
                # It keeps its bit generator's lock, and perhaps a number that was drawn already.
                generator.__init__(getattr(generator, "bit_generator", None) or generator._bit_generator)
    torch = sys.modules.get("torch")
    if torch is not None:
        with contextlib.suppress(Exception):
            torch.default_generator.seed()
