"""Parts of a bridge without a connection: its clients' budgets and time-outs, what is said of pools' health; options of its door;
what a worker's process finds in its environment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import snakepit_trio as sp
from snakepit_trio import _platform
from snakepit_trio.bridge import frame_budget
from snakepit_trio.bridge.frame_budget import Flooded, Guard
from snakepit_trio.bridge.health import HealthService
from snakepit_trio.bridge.methods import read_timeout
from snakepit_trio.errors import ConfigError, PoolNotFound
from snakepit_trio.launch.environment import THREAD_VARIABLES, worker_environment


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600), (b"2M", 120), (b"30S", 30), (b"5m", 0.005), (b"7u", 7e-6), (b"9n", 9e-9), (b"0S", 0), (b"99999999S", 99999999),
        (b"100000000S", None), (b"S", None), (b"1", None), (b"-1S", None), (b"1.5S", None), (b"1 S", None), (b"1X", None), (b"", None), (b"1SS", None),
    ],
)  # fmt: skip
def test_time_outs_of_clients(value: bytes, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(ValueError, match="grpc-timeout is not up to 8 digits and a unit"):
            read_timeout(value)
    else:
        assert read_timeout(value) == pytest.approx(seconds)


def test_a_budget_that_time_refills() -> None:
    guard = Guard(100.0)
    for _ in range(2000):
        guard.charge(1.0, 100.0)
    assert repr(guard) == "<Guard left=0>"
    with pytest.raises(Flooded):
        guard.charge(0.5, 100.0)
    guard = Guard(100.0)
    guard.charge(2000.0, 100.0)
    guard.charge(200.0, 100.5)
    with pytest.raises(Flooded):
        guard.charge(0.1, 100.5)
    # It never has more than at the beginning, however long it is left alone.
    guard = Guard(100.0)
    guard.charge(2000.0, 1e9)
    with pytest.raises(Flooded):
        guard.charge(0.1, 1e9)


def test_a_budget_that_answers_refill() -> None:
    guard = Guard(0.0)
    guard.refund()
    guard.charge(2000.0, 0.0)
    guard.refund()
    guard.charge(4.0, 0.0)
    with pytest.raises(Flooded):
        guard.charge(0.1, 0.0)


def test_who_works_may_cancel_but_not_flood() -> None:
    """A cancel costs what an answer gives back; a refused request costs more."""
    from snakepit_trio.wire.http2.rules import events

    assert frame_budget.COSTS[events.StreamReset] == frame_budget._REFUND
    assert frame_budget.REFUSED > frame_budget._REFUND
    assert 1 / 0.02 * frame_budget.COSTS[events.WindowUpdated] < frame_budget._PER_SECOND


class Pools:
    """Pools that are ready or closed."""

    def __init__(self, **ready: int | None) -> None:
        self.pools = {
            name: SimpleNamespace(closed=count is None, stats=lambda count=count: SimpleNamespace(ready=count or 0))
            for name, count in ready.items()
        }


@pytest.mark.anyio
async def test_health() -> None:
    async def found(service: str, **ready: int | None) -> str:
        made = HealthService(cast("Any", Pools(**ready)), public=True)
        name = (await made._check(cast("Any", None), cast("Any", SimpleNamespace(service=service)))).status.name
        made.close()
        after = (await made._check(cast("Any", None), cast("Any", SimpleNamespace(service=service)))).status.name
        assert after == "NOT_SERVING"
        return str(name)

    for service in ("", "snakepit.v1.BridgeService", "grpc.health.v1.Health"):
        assert await found(service, a=0, b=1) == await found(service, a=3) == "SERVING"
        assert await found(service, a=0) == await found(service, a=None, b=0) == await found(service) == "NOT_SERVING"
    assert [await found("a", a=count, b=1) for count in (0, 1, None)] == ["NOT_SERVING", "SERVING", "NOT_SERVING"]
    with pytest.raises(PoolNotFound) as refused:
        await found("x", a=1)
    assert refused.value.details == {"service": "x"}
    for public in (True, False):
        methods = HealthService(cast("Any", Pools()), public=public).methods
        assert {name.rpartition(b"/")[2]: (one.public, one.streams_out, one.longest) for name, one in methods.items()} == {
            b"Check": (public, False, 1024), b"Watch": (public, True, 1024),
        }  # fmt: skip


TLS = sp.TlsConfig(cert="c", key="k")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, None), ({"address": "unix:/s"}, None), ({"address": "tcp:h:0"}, None), ({"address": "tcp:h:65535"}, None), ({"address": "tcp:[::1]:80"}, None),
        ({"address": "tcp:h:80", "tls": TLS}, None), ({"token": "x" * 4096}, None), ({"token": "!~"}, None), ({"token_file": "f"}, None),
        ({"address": "tcp:h:65536"}, "address"), ({"address": "tcp:h"}, "address"), ({"address": "tcp::80"}, "address"), ({"address": "unix:"}, "address"),
        ({"address": ""}, "address"), ({"address": "tcp:[x]:80"}, "address"), ({"address": "xunix:/s"}, "address"),
        ({"token": ""}, "token"), ({"token": "a b"}, "token"), ({"token": "\x7f"}, "token"), ({"token": "x" * 4097}, "token"), ({"token": "\u00e4"}, "token"),
        ({"token": "t", "token_file": "f"}, "token_file"), ({"tls": TLS}, "tls"), ({"address": "unix:/s", "tls": TLS}, "tls"),
        ({"max_streams": 0}, "max_streams"), ({"keepalive_interval": None, "idle_timeout": None, "max_buffered": None}, None),
    ],
    ids=str,
)  # fmt: skip
def test_options_of_a_door(options: dict[str, Any], key: str | None) -> None:
    if key is None:
        sp.BridgeConfig(**options)
    else:
        with pytest.raises(ConfigError) as refused:
            sp.BridgeConfig(**options)
        assert refused.value.details["key"] == key and "x" * 100 not in str(refused.value)


def test_the_environment_of_a_worker() -> None:
    spec = SimpleNamespace(
        run_id="r", worker_id="w", threads=3, env={"MKL_NUM_THREADS": "5", "A": "mine", "PYTHONUNBUFFERED": ""}
    )
    inherited = {"A": "theirs", "OMP_NUM_THREADS": "9", "SNAKEPIT_RUN_ID": "outer", "B": "b", "SNAKEPIT_PORTABLE": "?"}
    found = worker_environment(cast("Any", spec), inherited)
    assert {name: found[name] for name in THREAD_VARIABLES} == {
        **dict.fromkeys(THREAD_VARIABLES, "3"), "OMP_NUM_THREADS": "9", "MKL_NUM_THREADS": "5",
    }  # fmt: skip
    rest = {name: value for name, value in found.items() if name not in THREAD_VARIABLES}
    # Whatever its environment has said since, it is in the form that its host is in.
    form = {"SNAKEPIT_PORTABLE": "1"} if _platform.FORM == "portable" else {}
    own = {"SNAKEPIT_RUN_ID": "r", "SNAKEPIT_WORKER_ID": "w", "PYTHONUNBUFFERED": ""}
    assert rest == {"A": "mine", "B": "b", **own, **form}
    assert inherited["A"] == "theirs"
