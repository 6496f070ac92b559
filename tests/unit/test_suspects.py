"""Requests that may not run in a worker that has room: they wait for another, and keep their place."""

from __future__ import annotations

import pytest

from snakepit_trio.pool.scheduling.expiry import CancelSet
from snakepit_trio.pool.scheduling.queue import RequestQueue
from snakepit_trio.pool.scheduling.request import Binding, Phase, Request, Seats
from snakepit_trio.pool.scheduling.scheduler import Scheduler
from tests.requests import NOTHING, make_request


class Port:
    def start(self, request: Request) -> None:
        pass

    cancel = withdraw = recall = start


class Desk:
    """A scheduler with two workers of two seats, all of them taken."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(queue=RequestQueue(), cancel_set=CancelSet(16, 60.0))
        self.workers = [Seats(Port(), 2), Seats(Port(), 2)]
        self.number = 0
        for seats in self.workers:
            self.scheduler.incarnations.open(seats, 0.0)
        self.first = [self.submit() for _ in range(4)]

    def submit(
        self,
        *,
        suspect: bool = False,
        beside: list[Request] | None = None,
        chain: tuple[Request, ...] = (),
        binding: Binding | None = None,
    ) -> Request:
        self.number += 1
        request = make_request(self.number, "tool", binding=binding)
        request.chain = chain
        request.suspect = suspect
        if beside is not None:
            request.beside = beside
            beside.append(request)
        self.scheduler.submit(request, 0.0)
        return request

    def reply(self, request: Request) -> None:
        assert request.seats is not None
        self.scheduler.replied(request.seats, request.id, 1.0, result=NOTHING, error=None)
        # Nobody is forgotten.
        assert self.scheduler.ledger.queued == sum(
            1 for request in self.scheduler.ledger.living if request.phase is Phase.QUEUED
        )


def test_one_of_several_suspects_is_not_lost_behind_a_call_that_takes_the_seat() -> None:
    desk = Desk()
    one, other = desk.submit(suspect=True), desk.submit(suspect=True)
    plain, last = desk.submit(), desk.submit()
    left, right = desk.workers
    for request in list(left.running.values()):
        desk.reply(request)
    assert list(left.running.values()) == [one]
    desk.reply(next(iter(right.running.values())))
    assert plain.phase is Phase.RUNNING
    assert other.phase is last.phase is Phase.QUEUED
    assert desk.scheduler.ledger.queued == 2
    desk.reply(one)
    assert other.seats is left


@pytest.mark.parametrize("cancelled", [False, True])
def test_two_requests_for_one_call_run_in_different_workers(cancelled: bool) -> None:
    desk = Desk()
    left, right = desk.workers
    both: list[Request] = []
    for request in list(left.running.values()):
        desk.reply(request)
    first = desk.submit(beside=both)
    assert first.seats is left
    # There is a free seat, and not for this one; others go before it meanwhile.
    second = desk.submit(beside=both)
    assert second.phase is Phase.QUEUED
    plain = desk.submit()
    assert plain.seats is left
    if cancelled:
        # Until its worker is through with it, it has a part in the first.
        desk.scheduler.cancel(first, 1.0)
        desk.reply(plain)
        assert second.phase is Phase.QUEUED
        desk.scheduler.replied(left, first.id, 1.0, result=None, error=None)
        assert second.seats is left
    else:
        desk.reply(plain)
        assert second.phase is Phase.QUEUED
        desk.reply(next(iter(right.running.values())))
        assert second.seats is right


@pytest.mark.parametrize("reserved", [False, True])
def test_what_a_call_waits_for_itself_runs_beside_it_though_it_runs_alone(reserved: bool) -> None:
    desk = Desk()
    left, right = desk.workers
    outer, other = left.running.values()
    if reserved:
        # The worker is to become empty for a suspect, and does so when the outer call has ended.
        early = desk.submit(suspect=True)
    else:
        desk.reply(outer)
        outer = early = desk.submit(suspect=True)
    desk.reply(other)
    assert left.alone and list(left.running.values()) == [outer]
    assert early.phase is (Phase.QUEUED if reserved else Phase.RUNNING)
    # Others, suspects among them, don't come in.
    plain, suspect = desk.submit(), desk.submit(suspect=True, chain=(outer,))
    assert plain.phase is suspect.phase is Phase.QUEUED
    needed = desk.submit(chain=(outer,))
    assert needed.seats is left
    # Neither does what comes when there is no seat any more; it is the next.
    another = desk.submit(chain=(outer,))
    assert another.phase is Phase.QUEUED and not desk.scheduler.hopeless(another, {outer})
    desk.reply(needed)
    assert another.seats is left
    assert plain.phase is suspect.phase is Phase.QUEUED
    assert desk.scheduler.hopeless(plain, {outer, *right.running.values()})


def test_what_a_call_waits_for_goes_before_a_worker_is_kept_for_a_suspect() -> None:
    desk = Desk()
    left, _ = desk.workers
    outer, other = left.running.values()
    suspect, needed = desk.submit(suspect=True), desk.submit(chain=(outer,))
    assert needed.phase is Phase.QUEUED
    desk.reply(other)
    assert needed.seats is left and left.alone
    desk.reply(needed)
    desk.reply(outer)
    assert suspect.seats is left


def test_what_a_call_waits_for_does_not_wait_behind_its_session() -> None:
    desk = Desk()
    left, _ = desk.workers
    outer, other = left.running.values()
    binding = Binding("s", strict=True)
    binding.seats = left
    suspect, sister = desk.submit(suspect=True), desk.submit(binding=binding)
    needed = desk.submit(binding=binding, chain=(outer,))
    assert sister.phase is needed.phase is Phase.QUEUED and not suspect.seats
    desk.reply(other)
    # The sister would wait for the worker to become empty, and that for what is needed.
    assert left.alone and needed.seats is left and sister.phase is Phase.QUEUED
    for request in (needed, outer, suspect):
        desk.reply(request)
    assert sister.seats is left


@pytest.mark.parametrize(("running", "blocked", "waits"), [(0, 0, False), (1, 0, False), (1, 1, True), (2, 1, True)])
def test_whether_a_worker_becomes_empty_only_after_one_of_these(running: int, blocked: int, waits: bool) -> None:
    seats = Seats(Port(), 2)
    requests = [make_request(number) for number in range(3)]
    seats.running = dict(enumerate(requests[:running]))
    # One that runs elsewhere is none of its.
    assert seats.empties_after({requests[2], *requests[:blocked]}) is waits
