"""What is asked of a pool's workers is done to its end, also when whoever asked has left."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest
import trio

import snakepit_trio as sp
from snakepit_trio._bell import Bell
from snakepit_trio.pool.fleet.dispatch import WorkerDispatch
from snakepit_trio.pool.scheduling.incarnations import Incarnations
from snakepit_trio.supervision.slot import Slot
from tests.simulation.test_scaling import simulate, world_of


def slots(pool: sp.Pool) -> list[tuple[int, int]]:
    return sorted((info.slot, info.incarnation) for info in pool.workers())


def test_a_cancelled_replacement_leaves_no_worker_too_many() -> None:
    async def body(pool: sp.Pool) -> None:
        for _ in range(3):
            with trio.move_on_after(0):
                await pool.rolling_restart()
            with trio.move_on_after(0.001):
                await pool.rolling_restart()
            await trio.sleep(1)
        assert slots(pool) == [(0, 4), (1, 1)]
        with trio.move_on_after(0.001):
            await pool.recycle(pool.workers()[1].id)
        await trio.sleep(1)
        assert slots(pool) == [(0, 4), (1, 2)]
        assert pool.stats().ready == 2

    simulate(body, size=2)


def test_cancelled_replacements_still_count_for_the_surge() -> None:
    async def body(pool: sp.Pool) -> None:
        first = [info.id for info in pool.workers()]
        for worker_id in first:
            with trio.move_on_after(0.0001):
                await pool.recycle(worker_id)
        assert len(pool.workers()) == 5
        await trio.sleep(1)
        # Only the first had its turn when its caller left.
        assert slots(pool) == [(0, 2), (1, 1), (2, 1), (3, 1)]
        await pool.rolling_restart()
        assert slots(pool) == [(0, 3), (1, 2), (2, 2), (3, 2)]

    simulate(body, size=4)


def test_a_cancelled_resize_still_sends_the_surplus_away() -> None:
    async def body(pool: sp.Pool) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(pool.execute, "work", {"seconds": 0.5})
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.1):
                await pool.resize(1)
            assert sorted(info.state for info in pool.workers()) == ["busy", "draining"]
        await trio.sleep(0.1)
        assert [info.state for info in pool.workers()] == ["ready"]
        assert not pool.supervisor._slots.retiring

    simulate(body, size=2)


def test_a_rolling_restart_takes_a_worker_that_has_ended_for_replaced() -> None:
    async def body(pool: sp.Pool) -> None:
        first = pool.workers()
        async with trio.open_nursery() as nursery:
            # It has the only turn, for as long as its new worker starts.
            nursery.start_soon(pool.recycle, first[2].id)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(pool.rolling_restart)
            await trio.testing.wait_all_tasks_blocked()
            for info in first[:2]:
                pool.kill_worker(info.id)
        await pool.wait_ready()
        assert slots(pool) == [(0, 2), (1, 2), (2, 2)]

    simulate(body, size=3)


def test_a_rolling_restart_in_a_pool_that_closes() -> None:
    async def body(pool: sp.Pool) -> None:
        async def restart() -> None:
            with pytest.raises(sp.PoolClosed):
                await pool.rolling_restart()

        async with anyio.create_task_group() as nursery:
            nursery.start_soon(restart)
            await trio.sleep(0.0001)
            await pool.aclose(drain=True)
        assert not world_of(pool).alive

    simulate(body, size=2)


@pytest.mark.parametrize("scaled", [False, True])
def test_who_goes_first_when_a_pool_shrinks_is_a_place_that_has_failed(scaled: bool) -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.start_failure = 1.0
        pool.kill_worker(pool.workers()[0].id)
        await trio.sleep(1)
        assert [info.state for info in pool.workers()] == ["failed", "ready"]
        if scaled:
            pool.supervisor.scale(1, ())
        else:
            await pool.resize(1)
        await trio.sleep(0.1)
        assert [(info.slot, info.state) for info in pool.workers()] == [(1, "ready")]
        await pool.execute("work", {"seconds": 0})

    simulate(body, size=2, restart_limit=1, backoff_base=0.01)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_pool_that_had_failed_serves_again_when_a_worker_can_start(scaled: bool) -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.start_failure = 1.0
        pool.kill_worker(pool.workers()[0].id)
        await trio.sleep(1)
        with pytest.raises(sp.WorkerStartupError):
            await pool.execute("work", {"seconds": 0})
        world_of(pool).behaviour.start_failure = 0.0
        # A scaled pool gives the place that has failed up meanwhile; the next request asks for another.
        await trio.sleep(30)
        await pool.execute("work", {"seconds": 0})

    options = {"min_size": 0, "max_size": 2} if scaled else {}
    simulate(body, size=1, restart_limit=1, backoff_base=0.01, **options)


def test_a_pool_that_refuses_says_when_it_tries_again() -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.start_failure = 1.0
        pool.kill_worker(pool.workers()[0].id)
        await trio.sleep(0.5)
        for past in (0.0, 3.0):
            await trio.sleep(past)
            with pytest.raises(sp.WorkerStartupError) as caught:
                await pool.execute("work", {"seconds": 0})
            left = pool.workers()[0].next_attempt - trio.current_time()  # type: ignore[operator]
            assert caught.value.retryable
            assert caught.value.details["retry_after"] == pytest.approx(left)
            assert caught.value.details["option"] == "restart_limit"
        world_of(pool).behaviour.start_failure = 0.0
        await trio.sleep(left + 0.1)
        await pool.execute("work", {"seconds": 0})

    simulate(body, size=1, restart_limit=0, restart_window=20.0)


@pytest.mark.parametrize("surge", [1, 2])
def test_who_asks_for_a_replacement_that_is_under_way_hears_how_it_ends(surge: int) -> None:
    async def body(pool: sp.Pool) -> None:
        found: list[object] = []

        async def recycle(worker_id: str) -> None:
            found.append(await pool.recycle(worker_id))

        first = pool.workers()[0].id
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.execute, "work", {"seconds": 0.5})
            nursery.start_soon(pool.execute, "work", {"seconds": 0.5})
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                nursery.start_soon(recycle, first)
            await trio.sleep(0.2)
            assert [info.state for info in pool.workers() if info.id == first] == ["draining"]
            assert found == []
            # The old one is still there, though another serves already.
            nursery.start_soon(recycle, first)
        assert found == [True] * 3
        assert slots(pool) == [(0, 2), (1, 1)]
        with pytest.raises(sp.InvalidParameter):
            await pool.recycle(first)

        found.clear()
        world_of(pool).behaviour.start_failure = 1.0
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(recycle, pool.workers()[0].id)
        assert found == [False] * 3
        assert sorted(info.state for info in pool.workers()) == ["ready", "ready"]

    simulate(body, size=2, surge=surge)


def test_replacements_that_can_not_start_cost_nobody_the_worker_that_serves() -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.start_failure = 1.0
        worker_id = pool.workers()[0].id
        for _ in range(4):
            assert not await pool.recycle(worker_id)
        assert [(info.id, info.state) for info in pool.workers()] == [(worker_id, "ready")]
        await pool.wait_ready()
        await pool.execute("work", {"seconds": 0})
        world_of(pool).behaviour.start_failure = 0.0
        assert await pool.recycle(worker_id)

    simulate(body, size=1, restart_limit=1, backoff_base=0.01)


def test_a_worker_that_takes_no_more_calls_is_replaced_though_the_first_attempts_fail() -> None:
    async def body(pool: sp.Pool) -> None:
        behaviour = world_of(pool).behaviour
        behaviour.deaf = behaviour.start_failure = 1.0
        async with trio.open_nursery() as nursery:
            # In the way of an end by force: the call that does not stop is waited for.
            nursery.start_soon(pool.execute, "work", {"seconds": 10})
            with trio.move_on_after(1):
                await pool.execute("work", {"seconds": 5})
            await trio.sleep(6)
            assert [info.tainted for info in pool.workers()] == [True]
            assert pool.stats().ready == 0
            behaviour.start_failure = 0.0
            await pool.execute("work", {"seconds": 0})
        assert pool.stats().failed == 0

    simulate(body, size=1, threads=2, restart_limit=100, backoff_base=0.5)


def test_a_call_that_is_left_after_the_grace_of_another_ends_their_worker_when_neither_stops() -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.deaf = 1.0
        first = pool.workers()[0].id
        async with trio.open_nursery() as nursery:
            for patience in (0.5, 2.0):

                async def call(patience: float = patience) -> None:
                    with trio.move_on_after(patience):
                        await pool.execute("work", {"seconds": 1000})

                nursery.start_soon(call)
        assert [(info.id, info.tainted) for info in pool.workers()] == [(first, True)]
        began = trio.current_time()
        await pool.execute("work", {"seconds": 0})
        assert 0.5 <= trio.current_time() - began < 0.7
        assert pool.workers()[0].id != first

    simulate(body, size=1, threads=2, cancel_grace=0.5)


def test_a_worker_that_is_due_while_the_one_before_it_still_drains_is_replaced() -> None:
    async def body(pool: sp.Pool) -> None:
        await pool.execute("work", {"seconds": 4.5})
        await trio.sleep(30)
        assert pool.workers()[0].incarnation > 10

    simulate(body, size=1, max_age=2.0, stop_grace=5.0)


def test_a_worker_that_is_too_old_is_replaced_though_the_first_attempts_fail() -> None:
    async def body(pool: sp.Pool) -> None:
        world_of(pool).behaviour.start_failure = 1.0
        await trio.sleep(60)
        assert [(info.incarnation, info.state) for info in pool.workers()] == [(1, "ready")]
        # Not again and again without a pause.
        assert 4 < pool.supervisor.slots[0].incarnation < 20
        world_of(pool).behaviour.start_failure = 0.0
        await trio.sleep(60)
        assert pool.workers()[0].incarnation > 1

    simulate(body, size=1, restart_limit=2, max_age=10.0)


@pytest.mark.parametrize("surge", [1, 2, 4])
def test_a_rolling_restart_replaces_as_many_at_a_time_as_may_be(surge: int) -> None:
    most = []

    async def body(pool: sp.Pool) -> None:
        async def watch() -> None:
            while True:
                most.append(len(pool.workers()))
                await trio.sleep(0.0005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await pool.rolling_restart()
            nursery.cancel_scope.cancel()
        assert slots(pool) == [(n, 2) for n in range(4)]

    simulate(body, size=4, surge=surge)
    assert max(most) == 4 + surge


def test_a_rolling_restart_that_cannot_go_on_says_so_and_leaves_the_others() -> None:
    async def body(pool: sp.Pool) -> None:
        before = {info.id for info in pool.workers()}
        world_of(pool).behaviour.start_failure = 1.0
        with pytest.raises(sp.WorkerStartupError):
            await pool.rolling_restart()
        assert {info.id for info in pool.workers() if info.state == "ready"} == before
        world_of(pool).behaviour.start_failure = 0.0

    simulate(body, size=4, surge=2, restart_limit=0)


def test_a_worker_that_dies_while_it_drains_is_not_waited_for() -> None:
    async def body(pool: sp.Pool) -> None:
        old = pool.workers()[0].id
        took = None

        async def recycle() -> None:
            nonlocal took
            begun = trio.current_time()
            assert await pool.recycle(old)
            took = trio.current_time() - begun

        async def long() -> None:
            with pytest.raises(sp.WorkerCrashed):
                await pool.execute("work", {"seconds": 100.0})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(long)
            await trio.sleep(0.1)
            nursery.start_soon(recycle)
            await trio.sleep(0.5)
            assert took is None
            world_of(pool).worker(old).crash()
        assert took is not None and took < 1

    simulate(body, size=1, stop_grace=50.0)


def test_a_spare_that_is_to_be_replaced_is_given_to_no_slot() -> None:
    async def body(pool: sp.Pool) -> None:
        await trio.sleep(1)
        world_of(pool).behaviour.start_failure = 1.0
        (spare,) = [place.current for place in pool.supervisor._slots.spares]
        assert spare is not None
        spare.link_alive(1 << 40, 0.0)
        await trio.sleep(0.01)
        pool.kill_worker(pool.supervisor.slots[0].current.id)  # type: ignore[union-attr]
        await trio.sleep(5)
        assert spare.slot == -1
        world_of(pool).behaviour.start_failure = 0.0
        await trio.sleep(60)
        assert spare.ended.is_set()
        assert [info.state for info in pool.workers()] == ["ready", "spare"]

    simulate(body, size=1, spares=1, max_rss=1 << 30)


def test_a_worker_that_becomes_due_on_its_way_to_a_slot_is_replaced_there() -> None:
    async def body(pool: sp.Pool) -> None:
        await trio.sleep(1)
        slots = pool.supervisor._slots
        take, taken = slots.take_spare, []

        def take_and_grow(slot: int, incarnation: int) -> object:
            worker = take(slot, incarnation)
            if worker is not None and not taken:
                taken.append(worker)
                worker.link_alive(1 << 40, 0.0)
            return worker

        slots.take_spare = take_and_grow  # type: ignore[method-assign, assignment]
        assert await pool.recycle(pool.workers()[0].id)
        await trio.sleep(10)
        assert taken[0].ended.is_set()
        assert sorted((info.slot, info.incarnation) for info in pool.workers()) == [(-1, 2), (0, 3)]
        assert [info.state for info in pool.workers()] == ["ready", "spare"]

    simulate(body, size=1, spares=1, max_rss=1 << 30)


@pytest.mark.parametrize(
    ("kind", "name"), [(WorkerDispatch, "admit"), (Incarnations, "clear_failure"), (Slot, "_keep"), (Bell, "ring")]
)
def test_a_spare_that_is_lost_on_its_way_to_a_slot_ends(
    kind: type, name: str, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    async def body(pool: sp.Pool) -> None:
        await trio.sleep(1)
        slots, plain = pool.supervisor._slots, getattr(kind, name)
        take = slots.take_spare

        def fail_once(*args: object) -> object:
            monkeypatch.setattr(kind, name, plain)
            raise RuntimeError("on the way")

        def take_and_fail(slot: int, incarnation: int) -> object:
            monkeypatch.setattr(slots, "take_spare", take)
            if kind is Slot:
                worker = take(slot, incarnation)
                monkeypatch.setattr(kind, name, fail_once)
                return worker
            monkeypatch.setattr(kind, name, fail_once)
            return take(slot, incarnation)

        monkeypatch.setattr(slots, "take_spare", take_and_fail)
        pool.kill_worker(pool.workers()[0].id)
        await trio.sleep(60)
        assert [str(error) for error in internal_errors] == ["on the way"]
        assert sorted(info.state for info in pool.workers()) == ["ready", "spare"]
        assert len(world_of(pool).alive) == 2
        # The one that is there now serves in its turn.
        ids = {info.state: info.id for info in pool.workers()}
        pool.kill_worker(ids["ready"])
        await trio.sleep(60)
        assert {info.state: info.id for info in pool.workers()}["ready"] == ids["spare"]

    simulate(body, size=1, spares=1)


def test_before_there_is_a_process_a_worker_has_no_process_id() -> None:
    """0 would be the caller's own group to ``os.kill``."""

    async def body(pool: sp.Pool) -> None:
        seen: list[int | None] = []
        async with world_of(pool).events.subscribe("worker.") as events:
            await pool.recycle(pool.workers()[0].id)
            while (event := events.receive_nowait()) is not None:
                seen.append(event.metadata["pid"])
        assert 0 not in seen
        assert None in seen

    simulate(body, size=1)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        *[(name, 1) for name in ("_change_of", "_begin_change", "_begin", "_keep", "_start", "_carry_out", "_settle")],
        *[(name, 2) for name in ("_change_of", "_start")],
    ],
)
def test_a_replacement_that_fails_gives_its_turn_back(
    name: str, entry: int, monkeypatch: pytest.MonkeyPatch, internal_errors: list[BaseException]
) -> None:
    async def body(pool: sp.Pool) -> None:
        plain, entries = getattr(Slot, name), 0

        def fail_once(*args: object, **options: object) -> object:
            nonlocal entries
            entries += 1
            if entries == entry:
                raise RuntimeError(name)
            return plain(*args, **options)

        monkeypatch.setattr(Slot, name, fail_once)
        with suppress(sp.SnakepitError):
            await pool.recycle(pool.workers()[0].id)
        assert entries >= entry
        with trio.fail_after(100):
            await pool.rolling_restart()
        await pool.wait_ready()
        assert len(world_of(pool).alive) == 2
        assert [info.state for info in pool.workers()] == ["ready", "ready"]
        assert {str(error) for error in internal_errors} == {name}

    simulate(body, size=2, surge=1)
