"""What becomes of a line that a worker writes: who hears of it, at which level, and what it may cost the host."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import snakepit_trio.runtime  # noqa: F401  # Has the library's handler, which does nothing.
from snakepit_trio.observe import worker_output
from snakepit_trio.observe.line_levels import marked, unmarked
from snakepit_trio.observe.worker_output import WorkerOutput
from snakepit_trio.worker import stderr

FIELDS = {"worker_id": "w", "stream": "stderr"}
LIBRARY = logging.getLogger("snakepit_trio")


def console(monkeypatch: pytest.MonkeyPatch, *handlers: logging.Handler) -> io.StringIO:
    """Standard error of an application whose root logger has these handlers, and not those of this test run."""
    found = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [*handlers])
    monkeypatch.setattr(sys, "stderr", found)
    return found


def put(mode: Any, *lines: tuple[str, int | None]) -> None:
    WorkerOutput(mode, "pool w", FIELDS).put(lines)


BOTH = (("printed", None), ("said", logging.WARNING))


class Keeps(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.levelno, record.getMessage(), record.worker_id))  # type: ignore[attr-defined]


@pytest.fixture
def handler() -> Iterator[Keeps]:
    """An application's handler, which is not in use yet."""
    found = Keeps()
    yield found
    LIBRARY.removeHandler(found)


def test_lines_are_shown_where_nobody_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(monkeypatch)
    put("auto", *BOTH)
    assert shown.getvalue() == "[pool w] printed\n[pool w] said\n"


def test_an_application_that_logs_the_library_has_the_last_word(
    handler: Keeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = console(monkeypatch)
    LIBRARY.addHandler(handler)
    put("auto", *BOTH)
    # Nobody has asked for less than warnings; that it set up a handler is enough.
    assert (shown.getvalue(), handler.told) == ("", [(logging.WARNING, "said", "w")])
    monkeypatch.setattr(LIBRARY, "level", logging.INFO)
    LIBRARY.manager._clear_cache()  # type: ignore[attr-defined]
    put("auto", *BOTH)
    assert handler.told[1:] == [(logging.INFO, "printed", "w"), (logging.WARNING, "said", "w")]
    assert shown.getvalue() == ""


@pytest.mark.parametrize("what", ["level", "filters", "propagate"])
def test_silence_is_the_applications_word_too(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    shown = console(monkeypatch)
    value = {"level": logging.CRITICAL, "filters": [lambda record: False], "propagate": False}[what]
    monkeypatch.setattr(LIBRARY, what, value)
    LIBRARY.manager._clear_cache()  # type: ignore[attr-defined]
    try:
        put("auto", *BOTH)
        assert shown.getvalue() == ""
    finally:
        monkeypatch.undo()
        LIBRARY.manager._clear_cache()  # type: ignore[attr-defined]


def test_a_line_is_logged_or_shown_and_never_both(handler: Keeps, monkeypatch: pytest.MonkeyPatch) -> None:
    """``logging.basicConfig()`` takes warnings: what is printed would be lost without any sign."""
    shown = console(monkeypatch, handler)
    put("auto", *BOTH)
    assert shown.getvalue() == "[pool w] printed\n"
    assert handler.told == [(logging.WARNING, "said", "w")]


def test_a_mode_that_was_chosen(handler: Keeps, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = console(monkeypatch, handler)
    put("stderr", *BOTH)
    assert (shown.getvalue().count("\n"), handler.told) == (2, [])
    put("discard", *BOTH)
    assert (shown.getvalue().count("\n"), handler.told) == (2, [])
    put("logging", *BOTH)
    assert (shown.getvalue().count("\n"), handler.told) == (2, [(logging.WARNING, "said", "w")])


def test_a_standard_error_that_fails_or_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, object()):
        monkeypatch.setattr(sys, "stderr", stream)
        put("stderr", *BOTH)


def test_a_pipe_that_nobody_reads_takes_what_it_can_and_is_told_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    with open(ours, "rb") as source, open(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        os.set_blocking(ours, False)
        output = WorkerOutput("stderr", "w", FIELDS)
        lines = [(f"{number} " + "\u20ac" * 100, None) for number in range(3000)] + [("x" * 200_000, None)]
        for begin in range(0, len(lines), 100):
            output.put(lines[begin : begin + 100])
        text = source.read().decode()
        shown = text.splitlines()
        # As many as there was room for, from the first on, each whole.
        assert 50 < len(shown) < 3000
        assert [line.split()[1] for line in shown] == [str(number) for number in range(len(shown))]
        output.put([("again", None)])
        assert source.read().decode().splitlines() == [
            f"[w] ({len(lines) - len(shown)} lines were left out: nobody read standard error)",
            "[w] again",
        ]
        output.put([("and again", None)])
        assert source.read().decode() == "[w] and again\n"


@pytest.mark.anyio
async def test_a_slow_reader_gets_every_line_and_one_that_stops_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_output, "_PATIENCE", 0.2)
    ours, theirs = os.pipe()
    lines = [(f"{number} {'x' * 300}", None) for number in range(1000)]
    with os.fdopen(ours, "rb") as source, os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        os.set_blocking(ours, False)
        found = bytearray()

        async def read() -> None:
            while found.count(b"\n") < 2 * len(lines):
                await anyio.wait_readable(ours)
                found.extend(os.read(ours, 5000))

        outputs = [WorkerOutput("stderr", name, FIELDS) for name in "ab"]
        with anyio.fail_after(20):
            async with anyio.create_task_group() as nursery:
                nursery.start_soon(read)
                for output in outputs:
                    nursery.start_soon(output.tell, lines)
            for name in "ab":
                told = [line for line in found.decode().splitlines() if line.startswith(f"[{name}] ")]
                assert told == [f"[{name}] {line}" for line, _ in lines]
            # Now nobody reads: a pipe's worth, one wait, and no other one.
            began = anyio.current_time()
            await outputs[0].tell(lines)
            await outputs[0].tell(lines)
            assert 0.2 <= anyio.current_time() - began < 2
            assert b"were left out" not in source.read()
            await outputs[0].tell(lines[:1])
            assert b"were left out" in source.readline()


@given(st.lists(st.text(st.characters(exclude_characters="\n"), max_size=9000), max_size=8))
def test_pieces_hold_everything_in_order_and_fit(lines: list[str]) -> None:
    ended = [f"{line}\n" for line in lines]
    pieces = list(worker_output._pieces(ended))
    assert "".join(piece for piece, _ in pieces) == "".join(ended)
    assert sum(count for _, count in pieces) == len(lines)
    assert all(len(piece.encode(errors="backslashreplace")) <= worker_output._PIECE for piece, _ in pieces)


# ---- levels ----------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="\n")), st.integers(0, 60))
def test_levels_of_lines(line: str, level: int) -> None:
    text, found = unmarked(marked(line, level))
    assert text == line and found is not None
    assert found <= max(level, logging.DEBUG) < found + 10 or found == logging.CRITICAL


@pytest.mark.parametrize(
    "line", ["", "<", "<4", "<8>text", "<44>text", "<a>text", "<\u0664>text", " <4>text", "text<4>"]
)
def test_what_is_no_mark(line: str) -> None:
    assert unmarked(line) == (line, None)


def test_marks_of_several_lines() -> None:
    assert marked("a\n\nb", logging.ERROR) == "<3>a\n<3>\n<3>b"


def worker(code: str) -> list[str]:
    """What a process writes on standard error that has done as a worker does."""
    begin = "import io, logging, sys, warnings\nfrom snakepit_trio.worker.stderr import mark_levels\nmark_levels()\n"
    done = subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_what_logging_and_warnings_say_is_marked() -> None:
    said = worker(
        "mark_levels()\nlogging.getLogger('mine').error('a\\nb')\nwarnings.warn('w')\nprint('p', file=sys.stderr)\n"
        "logging.warning('by itself sets up a handler')\n"
        "try: 1 / 0\nexcept ZeroDivisionError: logging.exception('no')\n"
        "h = logging.StreamHandler(); logging.getLogger('own').addHandler(h); h.setFormatter(logging.Formatter('%(message)s!'))\n"
        "logging.getLogger('own').propagate = False\nlogging.getLogger('own').critical('c')\n"
    )
    assert said[:2] == ["<3>ERROR mine [-] a", "<3>b"]
    assert said[2].startswith("<4><string>:") and said[2].endswith("UserWarning: w")
    assert said[3] in ("p", "<4>  warnings.warn('w')")
    assert "<4>WARNING:root:by itself sets up a handler" in said
    begin = said.index("<3>ERROR:root:no")
    assert all(line.startswith("<3>") for line in said[begin:-1]) and "ZeroDivisionError" in said[-2]
    assert said[-1] == "<2>c!"


def test_a_stream_that_a_tool_has_put_in_its_place_gets_no_marks() -> None:
    said = worker(
        "real, sys.stderr = sys.stderr, io.StringIO()\n"
        "logging.getLogger('mine').error('a')\nwarnings.warn('w')\nother = io.StringIO()\n"
        "warnings.showwarning('x', UserWarning, 'f', 1, other)\n"
        "real.write(sys.stderr.getvalue() + other.getvalue())\nsys.stderr = None\n"
        "logging.getLogger('mine').error('a')\nwarnings.warn('w')\n"
    )
    assert said[0] == "ERROR mine [-] a"
    assert said[1].endswith("UserWarning: w") and not any(line.startswith("<") and line[2] == ">" for line in said)
    assert said[-1] == "f:1: UserWarning: x"


def test_this_process_is_no_worker() -> None:
    assert warnings.showwarning is not stderr._show_warning
    assert "format" not in vars(logging.StreamHandler)
