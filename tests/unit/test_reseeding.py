"""Random generators after a fork give numbers of their own, wherever they are kept."""

from __future__ import annotations

import gc
import random
import sys
import types
from typing import Any

import numpy as np
import pytest

from snakepit_trio.launch.reseeding import find_generators, reseed


@pytest.fixture(autouse=True)
def _all_is_listed() -> None:
    # What is frozen, the collector does not list.
    gc.unfreeze()


class Own(random.Random):
    """As programs have them."""


class Demanding(random.Random):
    def __init__(self, needed: int) -> None:
        super().__init__(needed)

    def seed(self, a: Any = None, version: int = 2, *, needed: int | None = None) -> None:
        if a is None:
            raise TypeError("seed() needs a seed")
        super().seed(a)


MADE = {
    "Random": lambda: random.Random(7),
    "subclass": lambda: Own(7),
    "default_rng": lambda: np.random.default_rng(7),
    "RandomState": lambda: np.random.RandomState(7),
    **{name: lambda name=name: np.random.Generator(getattr(np.random, name)(7)) for name in ("MT19937", "Philox", "SFC64", "PCG64DXSM")},
}  # fmt: skip


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_generator_goes_on_with_other_numbers(make: Any) -> None:
    one, other = make(), make()
    draw = "random" if hasattr(one, "random") else "random_sample"
    assert getattr(one, draw)() == getattr(other, draw)()
    found = [generator for generator in find_generators() if generator is one]
    assert found == [one]
    reseed(
        [
            g
            for g in find_generators()
            if g is one or g is getattr(one, "bit_generator", getattr(one, "_bit_generator", None))
        ]
    )
    drawn = {getattr(generator, draw)() for generator in (one, other)}
    assert len(drawn) == 2


def test_a_number_that_numpy_has_drawn_ahead_is_drawn_anew() -> None:
    one, other = np.random.RandomState(7), np.random.RandomState(7)
    assert one.standard_normal() == other.standard_normal()
    reseed([one._bit_generator, one])
    assert one.standard_normal() != other.standard_normal()


def test_generators_that_one_spawns_are_others_too() -> None:
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    reseed([one.bit_generator, one])
    assert one.bit_generator.seed_seq.spawn(1)[0].entropy != other.bit_generator.seed_seq.spawn(1)[0].entropy
    # Two that share a bit generator go on sharing it, and its lock.
    twin = np.random.Generator(one.bit_generator)
    reseed([one.bit_generator, one, twin])
    assert one.bit_generator is twin.bit_generator


def test_the_global_ones_are_among_them() -> None:
    random.seed(7)
    np.random.seed(7)
    before = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    reseed(find_generators())
    assert before[0] != random.random()
    assert before[1] != np.random.random()


def test_they_are_found_wherever_they_are() -> None:
    rng = random.Random(7)

    def draw(default: Any = np.random.RandomState(7)) -> Any:  # noqa: B008
        return rng, default

    class Holder:
        shared = {"deep": [(np.random.default_rng(7),)]}

    found = find_generators()
    for wanted in (rng, draw()[1], Holder.shared["deep"][0][0], Holder.shared["deep"][0][0].bit_generator):
        assert any(generator is wanted for generator in found)
    # Bit generators come first: the others take over what they have then.
    kinds = [
        isinstance(generator, np.random.BitGenerator) for generator in found if not isinstance(generator, random.Random)
    ]
    assert kinds == sorted(kinds, reverse=True)


def test_one_that_can_not_be_seeded_so_is_left_as_it_is() -> None:
    demanding = Demanding(7)
    state = demanding.getstate()
    reseed([random.SystemRandom(), demanding])
    assert demanding.getstate() == state


def test_torchs_own_is_seeded_where_there_is_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Generator:
        seeded = 0

        def seed(self) -> int:
            self.seeded += 1
            return 1

    torch = types.ModuleType("torch")
    torch.default_generator = Generator()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    reseed([])
    assert torch.default_generator.seeded == 1
    # One that is only half imported.
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    reseed([])


def test_a_class_that_refuses_to_be_hashed_is_passed_over() -> None:
    class Refuses(type):
        def __hash__(cls) -> int:
            raise SystemExit(3)

    class Odd(metaclass=Refuses):
        """Its instances are among what the collector knows."""

    odd, generator = Odd(), random.Random(1)
    odd.held = [generator]  # type: ignore[attr-defined]
    assert any(found is generator for found in find_generators())
