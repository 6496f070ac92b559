"""How many sessions one client of a bridge may open: half of the places that are left, and what others use is none of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from snakepit_trio.bridge.session_shares import SessionShares
from snakepit_trio.errors import QuotaExceeded


class Known:
    """A session as the directory knows it."""

    def __init__(self) -> None:
        self.ended: str | None = None


class Sessions:
    """The directory."""

    def __init__(self) -> None:
        self.all: dict[str, Known] = {}

    def __len__(self) -> int:
        return len(self.all)

    def known(self, id: str) -> Known | None:
        return self.all.get(id)


class Client:
    """Anything that can be told from others."""


class Host:
    """A runtime, and its clients' shares."""

    def __init__(self, limit: int | None) -> None:
        self.sessions = Sessions()
        runtime = SimpleNamespace(sessions=self.sessions, config=SimpleNamespace(max_sessions=limit))
        self.shares = SessionShares(cast("Any", runtime))

    def open(self, client: Client, id: str | None = None) -> str:
        with self.shares.opening(client, id) as found:
            name = id or f"s{len(self.sessions)}"
            if name not in self.sessions.all:
                self.sessions.all[name] = Known()
                found.append(cast("Any", self.sessions.all[name]))
            return name

    def open_all(self, client: Client) -> int:
        """Open as many as may be."""
        for number in range(1000):
            try:
                self.open(client)
            except QuotaExceeded:
                return number
        raise AssertionError("no limit")

    def end(self, id: str) -> None:
        self.sessions.all.pop(id).ended = "closed"


@pytest.mark.parametrize("limit", range(2, 12))
def test_half_for_one_a_third_for_each_of_two(limit: int) -> None:
    host, one, other = Host(limit), Client(), Client()
    assert host.open_all(one) == limit // 2
    left = limit - limit // 2
    assert host.open_all(other) == left // 2
    assert host.open_all(one) == 0


def test_the_only_place_is_anybodys() -> None:
    host = Host(1)
    assert host.open(Client()) == "s0"


def test_without_a_limit_there_is_none() -> None:
    host, client = Host(None), Client()
    for _ in range(100):
        host.open(client)


def test_one_that_is_there_is_opened_by_anybody() -> None:
    host, client = Host(6), Client()
    assert host.open_all(client) == 3
    assert host.open(client, "s1") == "s1"
    with pytest.raises(QuotaExceeded):
        host.open(client, "new")


def test_what_has_ended_is_no_part_of_a_share() -> None:
    host, client = Host(8), Client()
    assert host.open_all(client) == 4
    host.end("s0")
    host.end("s2")
    assert host.open(client) and host.open(client, "again")
    with pytest.raises(QuotaExceeded) as refused:
        host.open(client)
    assert refused.value.details == {"quota": "max_sessions", "limit": 8, "used": 4, "asked": 1, "client_used": 4}
    assert refused.value.retryable
    assert "has opened 4 sessions, and the 4 places that are left of 8" in str(refused.value)


def test_what_is_being_opened_counts_until_it_has_failed() -> None:
    host, one, other = Host(4), Client(), Client()
    with host.shares.opening(one, None), host.shares.opening(one, None):
        with pytest.raises(QuotaExceeded), host.shares.opening(one, None):
            pytest.fail("opened")
        with host.shares.opening(other, None), pytest.raises(QuotaExceeded), host.shares.opening(Client(), None):
            pytest.fail("opened")
    with pytest.raises(ZeroDivisionError), host.shares.opening(one, None):
        raise ZeroDivisionError
    assert host.open_all(one) == 2


def test_a_client_that_is_gone_leaves_its_sessions() -> None:
    host = Host(8)
    assert host.open_all(Client()) == 4
    assert len(host.shares._shares) == 0
    assert host.open_all(Client()) == 2
