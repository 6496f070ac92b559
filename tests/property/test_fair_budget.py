"""A budget that many share: together they keep to its limit, and none can leave nothing for the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snakepit_trio._fair_budget import FairBudget, Share

LIMIT, HOLDERS = 1000, 10


@given(
    st.lists(st.tuples(st.integers(0, HOLDERS - 1), st.integers(-300, 300)), max_size=80),
    st.sampled_from([0, 100, 700, 1000, 2000]),
)
def test_together_they_keep_to_the_limit_and_each_can_have_its_own(steps: list[tuple[int, int]], largest: int) -> None:
    budget = FairBudget(LIMIT, HOLDERS, largest)
    shares = [Share(budget) for _ in range(HOLDERS)]
    for number, by in steps:
        share = shares[number]
        before, left = share.used, LIMIT - budget.used
        taken = True
        if by < 0:
            by = -min(-by, before)
            assert share.change(by)
        else:
            taken = share.take(by)
            if before + by <= budget.own:
                assert taken
            if taken and by > left:
                raise AssertionError("there was no room for it")
        assert share.used == before + by * taken
        assert budget.used == sum(each.used for each in shares) <= LIMIT
        assert budget.borrowed == sum(max(each.used - budget.own, 0) for each in shares)


@given(st.permutations(range(HOLDERS)), st.data())
def test_whoever_comes_last_finds_its_own_however_much_the_others_want(order: list[int], data: st.DataObject) -> None:
    budget = FairBudget(LIMIT, HOLDERS)
    shares = [Share(budget) for _ in range(HOLDERS)]
    for number in order[:-1]:
        while shares[number].take(data.draw(st.integers(1, 200))):
            pass
    assert budget.own == LIMIT // 4 // HOLDERS
    assert shares[order[-1]].take(budget.own)


def test_one_alone_may_have_half_of_what_is_common_and_two_a_third_each() -> None:
    budget = FairBudget(1200, 2)
    alone, other = Share(budget), Share(budget)
    assert budget.own, budget.common == (150, 900)
    assert alone.take(150 + 450)
    assert not alone.take(1)
    alone.change(-600)
    while alone.take(1) | other.take(1):
        pass
    assert alone.used == other.used == 150 + 300


def test_what_is_too_much_is_counted_until_it_is_dropped() -> None:
    share = Share(FairBudget(LIMIT, 10))
    assert not share.change(600)
    assert share.used == share.budget.used == 600
    assert share.change(-600)
    assert share.budget.borrowed == 0


def test_the_largest_fits_where_it_would_leave_less_than_it_takes() -> None:
    budget = FairBudget(LIMIT, 10, 700)
    first, second, third = Share(budget), Share(budget), Share(budget)
    assert first.take(700)
    assert not first.take(1)
    assert second.take(LIMIT - 700 - 8 * budget.own)
    assert not third.take(budget.own + 1)
    assert third.take(budget.own)
    # What is as large as the limit has all of it, and nobody has a part of his own.
    assert Share(FairBudget(LIMIT, 10, LIMIT)).take(LIMIT)
