"""What is said of exceptions."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import snakepit_trio as sp
from snakepit_trio._exceptions import holds_interrupt, leaves_of, one_line, traceback_of, type_name
from snakepit_trio._user_code import Raised, run_in_thread
from tests.adapters import hostile


def test_an_interrupt_is_found_in_a_group() -> None:
    assert holds_interrupt(KeyboardInterrupt())
    assert holds_interrupt(BaseExceptionGroup("a", [ValueError(), BaseExceptionGroup("b", [KeyboardInterrupt()])]))
    assert not holds_interrupt(ExceptionGroup("a", [ValueError()])) and not holds_interrupt(SystemExit())


def test_leaves_are_in_order_and_bounded() -> None:
    deep = ExceptionGroup("a", [ValueError("1"), ExceptionGroup("b", [KeyError("2"), OSError("3")]), TypeError("4")])
    assert [type(leaf) for leaf in leaves_of(deep)[0]] == [ValueError, KeyError, OSError, TypeError]
    assert leaves_of(ValueError()) == ([], False)
    leaves, more = leaves_of(ExceptionGroup("a", [ValueError(str(n)) for n in range(5000)]))
    assert more and len(leaves) < 5000


def test_an_ordinary_one_is_told_as_python_does() -> None:
    with pytest.raises(ValueError, match="second") as raised:
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc
    told = traceback_of(raised.value)
    assert one_line(raised.value) == "ValueError: second"
    assert "KeyError: 'first'\n\nThe above exception was the direct cause" in told
    assert told.endswith("ValueError: second\n")


def test_names_and_classes_to_catch() -> None:
    assert type_name(hostile.make("its class has a metaclass that exits")) == "tests.adapters.hostile.OfAMetaclass"
    assert issubclass(sp.remote(hostile.OfAMetaclass), sp.ToolError)
    assert issubclass(sp.remote("a\0b\ud800"), sp.ToolError)
    for wrong in (int, 5, None):
        with pytest.raises(TypeError):
            sp.remote(wrong)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["str() of it exits", "SystemExit", "a group"])
async def test_what_a_function_raises_breaks_no_event_loop(kind: str) -> None:
    made = hostile.make(kind)

    def fails() -> None:
        raise made

    with pytest.raises(BaseException) as found:
        await run_in_thread(fails)
    assert found.value is made
    raised = Raised()
    if kind != "a group":  # That may hold a cancellation, and passes.
        with raised:
            fails()
        assert raised.exc is made
    with anyio.move_on_after(0), Raised():
        await anyio.sleep(1)


def test_frames_of_hidden_modules_are_left_out_above_all_others_only() -> None:
    def module(name: str, body: str) -> dict[str, Any]:
        space: dict[str, Any] = {"__name__": name}
        exec(compile(body, f"<{name}>", "exec"), space)
        return space

    runner = module("runner.inner", "def call(f): f()")["call"]
    tool = module("tool", "def call(f): f()")["call"]

    def fail() -> None:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here") as raised:
        runner(lambda: tool(lambda: runner(fail)))
    hidden = ("runner.", __name__)
    told = traceback_of(raised.value, hidden=hidden)
    # The first call of the runner stood above the tool; the second is the tool's own.
    assert [line.split('"')[1] for line in told.splitlines() if line.startswith("  File")] == [
        "<tool>", __file__, "<runner.inner>", __file__,
    ]  # fmt: skip
    # Where all are hidden, all are shown; where nothing is to be hidden, too.
    everything = traceback_of(raised.value)
    assert (
        traceback_of(raised.value, hidden=(*hidden, "tool")) == everything and everything.count("<runner.inner>") == 2
    )
    # What has no frame of its own says where it was by its message.
    with pytest.raises(SyntaxError) as odd:
        runner(lambda: compile("(", "<odd>", "exec"))
    assert "runner.inner" not in traceback_of(odd.value, hidden=hidden) and "<odd>" in traceback_of(
        odd.value, hidden=hidden
    )
