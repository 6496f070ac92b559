"""What leaves a nursery of the library's own."""

from __future__ import annotations

import pytest

from snakepit_trio._interrupts import Unwrapped, interrupt_in


def group(*inner: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("Exceptions from a nursery", inner)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt("k"), SystemExit(3)])
def test_an_interrupt_leaves_groups_of_any_depth(interrupt: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    assert interrupt_in(interrupt) is interrupt
    for raised in (group(interrupt), group(ValueError(), group(group(interrupt), OSError()))):
        assert interrupt_in(raised) is interrupt
        with pytest.raises(type(interrupt)) as caught, Unwrapped():
            raise raised
        assert caught.value is interrupt
    # What came with it is not lost.
    assert "ValueError" in caplog.text and "OSError" in caplog.text


def test_what_the_block_raised_is_as_it_was() -> None:
    cause, context = OSError("cause"), LookupError("context")
    own = ValueError("own")
    own.__cause__, own.__context__ = cause, context
    for failure in (None, group(RuntimeError("ours")), RuntimeError("ours")):
        with pytest.raises(ValueError, match="own") as caught, Unwrapped() as unwrapped:
            unwrapped.raised = own
            if failure is not None:
                raise failure
        assert caught.value is own and own.__cause__ is cause and own.__context__ is context
    # A group of the application's own stays one.
    theirs = group(KeyboardInterrupt())
    with pytest.raises(BaseExceptionGroup) as grouped, Unwrapped() as unwrapped:
        unwrapped.raised = theirs
    assert grouped.value is theirs


def test_an_interrupt_goes_before_all_else() -> None:
    with pytest.raises(KeyboardInterrupt), Unwrapped() as unwrapped:
        unwrapped.raised = ValueError()
        raise group(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt), Unwrapped() as unwrapped:
        unwrapped.raised = KeyboardInterrupt()
        raise RuntimeError("a scope was left in the wrong order")
    # Also when something has broken in the middle of it.
    with pytest.raises(KeyboardInterrupt), Unwrapped():
        try:
            raise KeyboardInterrupt
        finally:
            raise group(RuntimeError("broken"))


def test_what_the_application_has_done_with_an_interrupt_is_its_own() -> None:
    class Cancelled(BaseException):
        pass

    with pytest.raises(Cancelled), Unwrapped():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise Cancelled from None
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        # While it is handled, another pool is opened, and fails.
        with pytest.raises(ValueError, match="invalid literal"), Unwrapped():
            int("new")


def test_nothing_is_made_of_what_has_no_interrupt_in_it() -> None:
    failure = group(ValueError())
    with pytest.raises(BaseExceptionGroup) as caught, Unwrapped():
        raise failure
    assert caught.value is failure
    with Unwrapped():
        pass
