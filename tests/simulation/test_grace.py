"""When a worker that does not stop its cancelled calls is given up, on a clock that jumps."""

from __future__ import annotations

import anyio
import trio
import trio.testing

from snakepit_trio._bell import Bell
from snakepit_trio.supervision.grace import Grace


def over_at(*steps: tuple[float, int, float | None]) -> float:
    """When the grace of a worker is over, in seconds.

    Args:
        steps: When, which call, and how long it may take from then on; None: it has stopped.
    """

    async def main() -> float:
        held = dict.fromkeys(call_id for _, call_id, _ in steps)
        grace = Grace(held, Bell())
        began = anyio.current_time()

        async def later(at: float, call_id: int, due: float | None) -> None:
            await anyio.sleep_until(began + at)
            if due is None:
                grace.due.pop(call_id, None)
            else:
                grace.begin(call_id, began + at + due)

        with anyio.fail_after(1000):
            async with anyio.create_task_group() as nursery:
                for step in steps:
                    nursery.start_soon(later, *step)
                await grace.overdue()
                nursery.cancel_scope.cancel()
        return round(anyio.current_time() - began, 6)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_later_call_hides_none_that_hangs() -> None:
    assert over_at((1, 1, 5), (2, 2, 50)) == 6
    # When it looks again, several are there.
    assert over_at((1, 1, 5), (2, 2, 9), (2.5, 3, 60), (3, 1, None)) == 11


def test_a_second_cancel_gives_no_more_time() -> None:
    assert over_at((1, 1, 5), (3, 1, 50)) == 6


def test_one_that_has_stopped_costs_nothing() -> None:
    assert over_at((1, 1, 5), (2, 1, None), (20, 2, 5)) == 25


def stopped_at(
    held: list[int], *steps: tuple[float, int, float | None], threads: int = 1, stuck: list[int] | None = None
) -> tuple[float, bool]:
    """When a worker that holds these calls has stopped all that was cancelled, or should have; and whether it has. The calls that
    had not stopped in time beside others are added to ``stuck``."""
    late = [] if stuck is None else stuck

    async def main() -> tuple[float, bool]:
        table, changed = dict.fromkeys(held), Bell()
        grace = Grace(table, changed)
        began = anyio.current_time()
        for at, call_id, due in steps:
            if not at and due is not None:
                grace.begin(call_id, began + due)

        async def later(at: float, call_id: int, due: float | None) -> None:
            await anyio.sleep_until(began + at)
            if due is None:
                del table[call_id]
                grace.due.pop(call_id, None)
                changed.ring()
            else:
                grace.begin(call_id, began + at + due)

        with anyio.fail_after(1000):
            async with anyio.create_task_group() as nursery:
                for step in steps:
                    if step[0]:
                        nursery.start_soon(later, *step)
                found = await grace.stopped(threads, late.append)
                nursery.cancel_scope.cancel()
        return round(anyio.current_time() - began, 6), found

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_neighbour_is_not_made_to_pay() -> None:
    # A call that somebody waits for runs beside the one that hangs: it may end first.
    assert stopped_at([1, 2], (0, 1, 3), (20, 2, None), threads=2) == (20, False)
    # One that has not begun is none.
    assert stopped_at([1, 2], (0, 1, 3), threads=1) == (3, False)


def test_one_that_stops_after_all_saves_its_worker() -> None:
    assert stopped_at([1, 2], (0, 1, 3), (7, 1, None), (20, 2, None), threads=2) == (7, True)
    # A neighbour that is cancelled meanwhile has its own grace.
    assert stopped_at([1, 2], (0, 1, 3), (5, 2, 3), threads=2) == (8, False)


def test_each_call_that_does_not_stop_beside_others_is_told_once_when_its_own_time_is_over() -> None:
    stuck: list[int] = []
    steps = ((0, 1, 3), (5, 2, 3), (6, 3, 1), (6.5, 3, None), (20, 4, None))
    assert stopped_at([1, 2, 3, 4], *steps, threads=4, stuck=stuck) == (20, False)
    assert stuck == [1, 2]
    # Alone they cost their worker, and nobody waits behind anybody.
    assert stopped_at([1], (0, 1, 3), threads=4, stuck=stuck) == (3, False)
    assert stuck == [1, 2]
