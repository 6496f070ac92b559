"""Workers on a Ray cluster: the tests of local workers over again. Needs Ray."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest

import snakepit_trio as sp
from tests.integration import (
    test_cancellation,
    test_host_tools,
    test_main_path,
    test_promises,
    test_sessions,
    test_supervision,
)

pytest.importorskip("ray", reason="Ray is not installed: nox -s ray")
from tests.integration import ray_cluster
from tests.integration.ray_cluster import Patient, cluster, nothing_left, on_ray

__all__ = ["cluster", "nothing_left"]

pytestmark = ray_cluster.marks


AGAIN: list[Callable[..., Any]] = [
    test_main_path.test_a_result_and_what_the_context_says,
    test_main_path.test_a_remote_exception_has_its_type_and_traceback,
    test_main_path.test_unknown_and_misused_tools,
    test_main_path.test_values_cross_the_border_exactly,
    test_main_path.test_streams,
    test_main_path.test_what_a_consumer_raises_leaves_unwrapped,
    test_main_path.test_map,
    test_main_path.test_cancel_reaches_a_sync_tool,
    test_main_path.test_a_timeout_comes_in_time_and_costs_the_worker_of_a_deaf_tool,
    test_main_path.test_a_killed_worker_is_replaced_and_its_call_fails_with_the_reason,
    test_main_path.test_an_idempotent_call_is_run_again_and_a_poisonous_one_is_not,
    test_main_path.test_threads_really_overlap,
    test_main_path.test_closing_lets_running_calls_end_and_ends_the_rest,
    test_main_path.test_a_cancelled_body_leaves_nothing,
    test_main_path.test_opening_can_be_cancelled,
    test_main_path.test_worker_output_goes_to_the_log,
    test_cancellation.test_a_paused_reader_pauses_the_generator,
    test_cancellation.test_the_deadline_is_spent_by_waiting_and_seen_by_the_tool,
    test_promises.test_how_a_worker_died_and_its_last_words,
    test_promises.test_a_worker_that_says_why_it_can_not_start_was_not_killed_by_a_signal,
    test_supervision.test_a_call_that_had_not_begun_is_run_elsewhere,
    test_supervision.test_resize_rolling_restart_recycle_and_cordon,
    test_sessions.test_a_lost_worker_by_affinity_and_on_lost,
    test_sessions.test_calls_that_run_or_wait_for_a_strict_worker_that_dies,
    test_sessions.test_a_session_ends_with_its_block,
    test_host_tools.test_every_kind_of_value_goes_there_and_comes_back,
    test_host_tools.test_a_dying_worker_ends_its_host_tools_and_its_request_does_not_wait_for_them,
]


@pytest.mark.parametrize("test", AGAIN, ids=lambda test: test.__name__.removeprefix("test_"))
async def test_as_local_ones(
    test: Callable[..., Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bodies of other tests, with every pool on Ray."""
    real = sp.PoolConfig

    def pool_config(**options: Any) -> sp.PoolConfig:
        return real(**on_ray(**options))

    def open_pool(adapter: str, **options: Any) -> Any:
        return sp.runtime.open_pool(adapter, **on_ray(**options))  # type: ignore[attr-defined]

    monkeypatch.setattr(sys.modules[test.__module__], "anyio", Patient())
    monkeypatch.setattr(sp, "open_pool", open_pool)
    monkeypatch.setattr(sp, "PoolConfig", pool_config)
    given = {name: request.getfixturevalue(name) for name in inspect.signature(test).parameters}
    await test(**given)
