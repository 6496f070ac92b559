"""What a failure means to the policies: what a tool raises says nothing but what a tool can say."""

from __future__ import annotations

import pytest

import snakepit_trio as sp
from snakepit_trio.observe.redaction import redact
from snakepit_trio.policies.circuit import Verdict
from snakepit_trio.policies.verdicts import judge, may_retry
from snakepit_trio.supervision.answers import error_info
from snakepit_trio.wire import failures
from snakepit_trio.wire.frames import ErrorInfo
from tests.adapters import hostile


def raised(exc: BaseException) -> sp.SnakepitError:
    """As it arrives from a worker whose tool raised it."""
    return failures.from_reply(failures.describe_exception(exc, redact=str))


@pytest.mark.parametrize("kind", sorted(hostile.SIGNALS))
def test_a_call_that_ran_runs_again_only_when_it_may(kind: str) -> None:
    error = raised(hostile.make(kind))
    assert not may_retry(error, idempotent=False, on=["Exception"])
    assert may_retry(error, idempotent=True, on=[])  # It says that it is retryable.
    assert judge(error, []) is (Verdict.NONE if kind == "InvalidParameter" else Verdict.FAILURE)


def test_what_the_library_says() -> None:
    assert may_retry(sp.QueueFull("full"), idempotent=False, on=[])
    assert may_retry(sp.WorkerCrashed("gone"), idempotent=True, on=[])
    assert not may_retry(sp.WorkerCrashed("gone"), idempotent=False, on=[])


def test_groups() -> None:
    one = raised(ExceptionGroup("g", [ConnectionRefusedError("a")]))
    two = raised(ExceptionGroup("g", [ConnectionRefusedError("a"), ExceptionGroup("h", [KeyError("b")])]))
    for error in (one, two):
        assert may_retry(error, idempotent=True, on=["ConnectionError"])
        assert not may_retry(error, idempotent=True, on=["ValueError"])
        assert isinstance(error, sp.remote(OSError)) and isinstance(error, sp.remote(ExceptionGroup))
    assert judge(one, ["ConnectionError"]) is Verdict.SUCCESS
    assert judge(two, ["ConnectionError"]) is Verdict.FAILURE
    assert judge(two, ["OSError", "LookupError"]) is Verdict.SUCCESS
    assert str(two) == ("ExceptionGroup: g (2 sub-exceptions): ConnectionRefusedError: a; KeyError: 'b'")


def test_a_worker_speaks_for_itself() -> None:
    """Whatever code a worker answers with, the host's own words are not among it."""
    for code in ("queue_full", "worker_crashed", "recalled", "pool_closed"):
        assert isinstance(failures.from_reply(ErrorInfo(code, "x", True)), sp.ToolError)
    assert type(failures.from_reply(ErrorInfo("invalid_parameter", "x"))) is sp.InvalidParameter
    for status, kind in ((1, sp.RequestCancelled), (4, sp.RequestTimeout), (16, sp.AuthenticationFailed)):
        error = failures.from_reply(error_info(status, "x", {}, str))
        assert isinstance(error, kind) and isinstance(error, sp.ToolError)


def test_secrets_at_the_place_of_a_cut() -> None:
    text = "x " * 40_000 + "password=hunter2 " + "y " * 40_000
    error = failures.describe_exception(ValueError(text), redact=redact)
    assert "hunter2" not in error.remote_message + error.remote_traceback
    assert len(error.remote_message.encode()) <= 8 * 1024 + 20
