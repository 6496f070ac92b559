"""Whatever an exception is and does, it is told, in bounds, and as what a tool has raised; and nothing on its way raises."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import snakepit_trio as sp
from snakepit_trio import errors
from snakepit_trio._exceptions import attempt, class_names, clean, is_a, leaves_of, one_line, sound_name, traceback_of
from snakepit_trio.observe.redaction import Redactor
from snakepit_trio.policies.verdicts import may_retry
from snakepit_trio.wire import codec, failures, frame_reading, frame_writing, frames, status
from tests.adapters import hostile

redactor = Redactor()
#: Statuses by which a client's library may send a call again by itself, or that say what became of the RPC.
_NOT_A_TOOLS = {1, 4, 8, 10, 13, 14, 16}
#: What a worker may say of a call itself.
_A_WORKERS = {
    "invalid_parameter", "invalid_payload", "request_cancelled", "request_timeout", "streaming_unsupported", "tool_not_found",
}  # fmt: skip
_OVERRIDDEN = ["__str__", "__repr__", "__class__", "__notes__", "__cause__", "code", "details", "message", "retryable"]
_SET = [
    "message",
    "code",
    "details",
    "retryable",
    "remote_types",
    "remote_message",
    "remote_traceback",
    "leaves",
    "args",
]

# ---- strategies ----------------------------------------------------------------------------------

anything = st.text(max_size=40) | st.text(st.characters(categories=["Cs"]), max_size=4) | st.just("x" * 70_000)
plain_values = st.none() | st.booleans() | st.integers() | st.floats() | anything | st.binary(max_size=9)
values = st.recursive(
    plain_values, lambda v: st.lists(v, max_size=3) | st.dictionaries(plain_values, v, max_size=3), max_leaves=6
)
odd = (
    values
    | st.builds(object)
    | st.sampled_from([hostile._Map(), hostile._Key(), hostile._Text("odd"), hostile.Raising])
)
library = [getattr(errors, name) for name in errors.__all__ if name != "remote"]
reasons = st.sampled_from([SystemExit(1), KeyboardInterrupt(), RuntimeError("no"), GeneratorExit(), MemoryError()])


class Held:
    """An exception that is shown whatever it does."""

    def __init__(self, exc: BaseException) -> None:
        self.exc: Any = exc

    def __repr__(self) -> str:
        return ascii(one_line(self.exc))


def raising(why: BaseException) -> Any:
    def broken(self: Any, *_: Any) -> Any:
        raise why

    return broken


def giving(value: Any) -> Any:
    return lambda self: value


@st.composite
def classes(draw: Any) -> type[BaseException]:
    base = draw(st.sampled_from([*library, Exception, ValueError, OSError, BaseException, KeyError, SystemExit]))
    members: dict[str, Any] = {"__module__": draw(st.just("m") | odd), "__init__": lambda self, *args: None}
    for name in draw(st.sets(st.sampled_from(_OVERRIDDEN), max_size=4)):
        broken, value = raising(draw(reasons)), draw(odd)
        if name in ("__str__", "__repr__"):
            members[name] = draw(st.sampled_from([broken, giving(value)]))
        elif name in ("__class__", "__cause__"):
            members[name] = property(broken)
        else:
            members[name] = property(broken) if draw(st.booleans()) else value
    made: type[BaseException] = type("Made", (base,), members)
    made.__qualname__ = draw(anything)
    return made


def with_attributes(error: BaseException, given: dict[str, Any]) -> BaseException:
    for name, value in given.items():
        attempt(None, setattr, error, name, value)
    return error


def group(message: str, members: list[Held]) -> Held:
    # A group asks its members for their class, which some refuse to tell.
    return Held(attempt(members[0].exc, BaseExceptionGroup, message, [held.exc for held in members]))


attributes = st.dictionaries(st.sampled_from(_SET), odd | st.lists(odd, max_size=3).map(tuple), max_size=5)
own_errors = st.sampled_from(library).flatmap(
    lambda cls: st.builds(lambda text, given: Held(with_attributes(cls(text), given)), anything, attributes)
)
singles = (
    classes().map(lambda cls: Held(cls("of a made class")))
    | own_errors
    | st.sampled_from(sorted({**hostile.KINDS, **hostile.SIGNALS})).map(lambda kind: Held(hostile.make(kind)))
)
exceptions = st.recursive(
    singles, lambda inner: st.builds(group, anything, st.lists(inner, min_size=1, max_size=3)), max_leaves=5
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def payload(value: Any) -> frames.Payload:
    return attempt(frames.NO_PAYLOAD, codec.encode, value)


infos = st.builds(
    frames.ErrorInfo, st.sampled_from(list(errors.GRPC_STATUS)) | names, names, st.booleans(), st.lists(names, max_size=40),
    names, names, st.none() | st.builds(frames.Payload, st.integers(0, 3), st.binary(max_size=20)) | values.map(payload),
    st.lists(st.builds(frames.Leaf, st.lists(names, max_size=9), names), max_size=9),
)  # fmt: skip


# ---- what a tool raises --------------------------------------------------------------------------


def raised(made: BaseException) -> BaseException:
    try:
        raise made
    except BaseException as exc:
        return exc


def sent(info: frames.ErrorInfo) -> frames.ErrorInfo:
    data = frame_writing.encode_error(info)
    assert len(data) < frames.FRAME_OVERHEAD
    return frame_reading.decode_error(data)


def over_the_bridge(error: Any, room: int) -> sp.SnakepitError:
    info = failures.to_info(error, redact=redactor.text, redact_details=redactor.value)
    trailers = status.trailers_for(info, room=room)
    assert sum(len(name) + len(value) + 32 for name, value in trailers) <= room
    assert all(value.isascii() and value.isprintable() for _, value in trailers)
    code = int(dict(trailers)["grpc-status"])
    assert not info.remote_types or code not in _NOT_A_TOOLS
    return status.error_from_trailers(dict(trailers), code, "message")


def check_told(made: BaseException) -> None:
    exc = raised(made)
    error = failures.from_reply(sent(failures.describe_exception(exc, redact=redactor.text)), redact=redactor.text)
    leaves, _ = leaves_of(exc)
    own = [found for found in [exc, *leaves[:8]] if not is_a(found, sp.ToolError)]
    assert len(error.leaves) == min(len(leaves), 8)  # type: ignore[attr-defined]
    for found in own:
        assert isinstance(error, sp.remote(type(found)))
    for room in (6 * 1024, 0, 6 * 1024, 0, 1024):
        # It is the tool's: told as such, caught as such, and never run again on its own word.
        assert isinstance(error, sp.ToolError)
        assert error.remote_types and str(error) and all(isinstance(key, str) for key in error.details)
        assert not may_retry(error, idempotent=False, on=["BaseException"])
        assert not own or own[0] is not exc or isinstance(error, sp.remote(class_names(exc)[0]))
        again = pickle.loads(pickle.dumps(error))
        assert isinstance(again, sp.ToolError) and again.remote_types == error.remote_types
        if room:
            error = over_the_bridge(error, room)
        else:  # Out of a host tool, into a worker's.
            error = failures.from_info(sent(failures.describe_exception(raised(error), redact=redactor.text)))
    assert len(one_line(exc)) < 2000
    assert len(traceback_of(exc, 10_000)) < 20_000


def check(held: Held) -> None:
    try:
        check_told(held.exc)
    except BaseException as found:
        raise AssertionError(traceback_of(found)) from None


@given(exceptions)
def test_any_exception_that_a_tool_raises(held: Held) -> None:
    check(held)


@pytest.mark.parametrize("kind", [*hostile.KINDS, *hostile.SIGNALS])
def test_each_kind(kind: str) -> None:
    check(Held(hostile.make(kind)))


@given(own_errors)
def test_any_error_that_the_library_passes_on(held: Held) -> None:
    info = sent(failures.to_info(held.exc, redact=redactor.text, redact_details=redactor.value))
    assert isinstance(failures.from_info(info), sp.ToolError) is is_a(held.exc, sp.ToolError)
    over_the_bridge(held.exc, 1024)


# ---- what a peer says ----------------------------------------------------------------------------


@given(infos)
def test_whatever_a_worker_answers_speaks_of_its_tool_or_the_call(info: frames.ErrorInfo) -> None:
    found = failures.from_reply(info)
    assert not may_retry(found, idempotent=False, on=["BaseException"])
    assert isinstance(found, sp.ToolError) or found.code in _A_WORKERS
    assert isinstance(pickle.loads(pickle.dumps(found)), sp.SnakepitError)
    over_the_bridge(found, 2048)


@given(infos)
def test_whatever_a_peer_tells_of_a_failure_is_one(info: frames.ErrorInfo) -> None:
    found = failures.from_info(frame_reading.decode_error(frame_writing.encode_error(info)))
    assert isinstance(found, sp.ToolError) is bool(info.remote_types or found.code == "tool_error")


# ---- text ----------------------------------------------------------------------------------------


@given(anything | st.text(), st.integers(100, 300))
def test_clean_text(text: str, limit: int) -> None:
    found, whole = clean(text, limit), text.encode(errors="backslashreplace")
    assert len(found.encode()) <= limit + 20
    assert len(whole) > limit or found == whole.decode()


@given(anything | st.text() | st.just("\0" * 300))
def test_sound_names(name: str) -> None:
    found = sound_name(name)
    assert sound_name(found) == found and len(found) <= 200
    type(found, (), {})
