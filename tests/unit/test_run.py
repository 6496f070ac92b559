"""A live run: its directory, its records, and what becomes of it when somebody takes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import stat
import tempfile
from pathlib import Path

import pytest

from snakepit_trio.errors import ConfigError
from snakepit_trio.supervision import run as run_module
from snakepit_trio.supervision import run_directory
from snakepit_trio.supervision.process_registry import Registry
from snakepit_trio.supervision.run import Run, open_run
from snakepit_trio.supervision.runs import list_runs

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_PAUSE", 0.0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def written(state: Path) -> dict[str, dict[str, int | None]]:
    """The pids of the processes that are written down, by run."""
    with contextlib.closing(sqlite3.connect(state / "registry.sqlite3")) as db:
        found: dict[str, dict[str, int | None]] = {run_id: {} for (run_id,) in db.execute("SELECT run_id FROM runs")}
        for run_id, process_id, pid in db.execute("SELECT run_id, process_id, pid FROM processes"):
            found[run_id][process_id] = pid
    return found


def start(run: Run, process_id: str) -> None:
    run.reserve(process_id, "worker", "p")
    run.begun(process_id, os.getpid())


def test_a_runs_places_are_private_and_go_with_it(state: Path) -> None:
    with open_run(str(state)) as run:
        start(run, "w1")
        lock = state / "runs" / f"{run.run_id}.lock"
        assert stat.S_IMODE(run.run_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for path in [lock, *state.glob("registry*")]:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(os.fsencode(run.run_dir)) < 107 - 20
        assert written(state) == {run.run_id: {"w1": os.getpid()}}
    assert not lock.exists()
    assert not run.run_dir.exists()
    assert written(state) == {}


def test_cleaners_that_ask_for_the_lock_leave_its_directory_alone(state: Path) -> None:
    """As systemd-tmpfiles does."""
    with open_run(str(state)) as run:
        for _ in range(2):
            fd = os.open(run.run_dir, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(fd)
            # So they do after it was made again.
            shutil.rmtree(run.run_dir)
            run.reserve("w1", "worker", "p")


def test_a_directory_that_was_removed_is_made_again(
    state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with open_run(str(state)) as run:
        # With all that is in the directory above, or that itself.
        for taken in (run.run_dir, place):
            shutil.rmtree(taken)
            run.reserve("w1", "worker", "p")
            assert stat.S_IMODE(run.run_dir.stat().st_mode) == 0o700
            assert f"{run.run_dir} was removed; it is made again" in caplog.text
            caplog.clear()
        run.reserve("w2", "worker", "p")
        assert not caplog.records
    place.rmdir()


@pytest.mark.parametrize("kind", ["file", "link", pytest.param("foreign", marks=as_root)])
def test_what_somebody_has_put_in_its_place_is_not_used(
    kind: str, state: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(str(state)) as run:
        shutil.rmtree(run.run_dir)
        if kind == "file":
            run.run_dir.touch()
        elif kind == "link":
            run.run_dir.symlink_to(tmp_path)
        else:
            run.run_dir.mkdir(mode=0o777)
            os.chown(run.run_dir, NOBODY, -1)
        run.reserve("w1", "worker", "p")
        assert f"{run.run_dir} was removed, and somebody else has put something in its place" in caplog.text
    assert tmp_path.exists()
    if run.run_dir.is_dir() and not run.run_dir.is_symlink():
        os.chown(run.run_dir, os.geteuid(), -1)
        shutil.rmtree(run.run_dir)
    else:
        run.run_dir.unlink(missing_ok=True)


@pytest.mark.parametrize("taken", ["all", "locks", "lock"])
def test_a_run_whose_state_directory_was_cleaned_up_registers_again(
    taken: str, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(str(state)) as run:
        start(run, "w1")
        if taken == "all":
            shutil.rmtree(state)
        elif taken == "locks":
            shutil.rmtree(state / "runs")
        else:
            (state / "runs" / f"{run.run_id}.lock").unlink()
        start(run, "w2")
        [entry] = list_runs(state)
        assert (entry.run_id, entry.alive, entry.pid) == (run.run_id, True, os.getpid())
        assert written(state) == {run.run_id: {"w1": os.getpid(), "w2": os.getpid()}}
        run.ended("w1")
        assert written(state) == {run.run_id: {"w2": os.getpid()}}
        assert caplog.text.count("registered again") == 1
    assert list_runs(state) == [] and written(state) == {}


def test_a_registry_that_is_garbled_under_a_run_is_begun_anew(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(str(state)) as run:
        start(run, "w1")
        with contextlib.closing(sqlite3.connect(state / "registry.sqlite3")) as other:
            # So that the garbage does not only hide what is written beside the file.
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (state / "registry.sqlite3").write_bytes(b"garbage" * 1000)
        for number in range(3):
            start(run, f"v{number}")
        assert written(state) == {run.run_id: dict.fromkeys(("w1", "v0", "v1", "v2"), os.getpid())}
        assert "begun anew" in caplog.text
        assert caplog.text.count("can't be written") == 1
    assert written(state) == {}


def test_what_could_not_be_written_while_the_registry_was_locked_is_written_later(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(str(state)) as run:
        start(run, "w1")
        start(run, "w2")
        with contextlib.closing(sqlite3.connect(state / "registry.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(5):
                start(run, f"v{number}")
                run.ended(f"v{number}")
            run.ended("w1")
            start(run, "w3")
        # Of those that came and went nobody has to hear.
        assert run._records is not None and run._records._changed == {"w1", "w3"}
        run.reserve("w4", "worker", "p")
        assert written(state) == {run.run_id: {"w2": os.getpid(), "w3": os.getpid(), "w4": None}}
    assert caplog.text.count("can't be written") == 1


def test_a_run_that_begins_while_the_registry_is_locked_is_there_all_the_same(
    state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(str(state)):
        pass
    with contextlib.closing(sqlite3.connect(state / "registry.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with open_run(str(state)) as run:
            start(run, "w1")
            assert [entry.run_id for entry in list_runs(state)] == [run.run_id]
            other.execute("ROLLBACK")
            start(run, "w2")
            assert written(state) == {run.run_id: {"w1": os.getpid(), "w2": os.getpid()}}
    assert "locked" in caplog.text


def test_a_spoilt_file_is_begun_anew(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(str(state)):
        pass
    path = state / "registry.sqlite3"
    sound = path.read_bytes()
    other = state.parent / "other.sqlite3"
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE runs (x)")
        db.commit()
    # No database; one whose second page makes no sense, which opening does not notice; one that was cut short; another
    # program's.
    for number, spoilt in enumerate(
        [
            b"no database at all" * 1000,
            sound[:4096] + b"\xee" * 4096 + sound[8192:],
            sound[:5000],
            other.read_bytes(),
        ]
    ):
        caplog.clear()
        path.write_bytes(spoilt)
        with open_run(str(state)) as run:
            start(run, "w1")
            assert (state / "runs" / f"{run.run_id}.lock").exists()
            assert written(state) == {run.run_id: {"w1": os.getpid()}}
        assert "begun anew" in caplog.text
        kept = sorted(state.glob("registry.sqlite3.spoilt-*"))
        assert len(kept) == number + 1 and kept[-1].read_bytes() == spoilt


def test_a_registry_of_a_later_version_is_left_alone(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(str(state)):
        pass
    with contextlib.closing(sqlite3.connect(state / "registry.sqlite3")) as db:
        db.execute("PRAGMA user_version = 9")
    with open_run(str(state)) as run:
        start(run, "w1")
        assert [entry.run_id for entry in list_runs(state)] == [run.run_id]
    assert "a later version of this library has written it (format 9)" in caplog.text
    assert not list(state.glob("*.spoilt-*"))
    assert written(state) == {}


@pytest.mark.parametrize("fault", ["file", pytest.param("foreign", marks=as_root)])
def test_a_run_goes_on_without_a_state_directory(fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    above = tmp_path / "above"
    if fault == "file":
        above.touch()
    else:
        above.mkdir()
        os.chown(above, NOBODY, -1)
    with open_run(str(above / "state")) as run:
        assert run.run_dir.exists() and run.control is None and run.swept == []
        start(run, "w1")
        run.ended("w1")
    assert "this run is not registered: state_dir: expected a directory that belongs to this user" in caplog.text
    assert str(above) in caplog.text


@as_root
@pytest.mark.parametrize("name", ["registry.sqlite3", "registry.sqlite3-wal", "runs"])
def test_files_of_somebody_else_are_not_used(name: str, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(str(state)):
        pass
    path = state / name
    path.touch()
    os.chown(path, NOBODY, -1)
    with open_run(str(state)) as run:
        start(run, "w1")
        # Without the registry it is there still, with its lock.
        assert (run.control is None) == (name == "runs")
    assert f"{path} belongs to user {NOBODY}" in caplog.text


@pytest.mark.parametrize("what", ["read-only", "full"])
def test_a_run_goes_on_when_its_book_can_no_longer_be_written(
    what: str, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_run(str(state)) as run:
        assert run._records is not None and run._records._registry is not None
        db = run._records._registry._db
        [(pages,)] = db.execute("PRAGMA page_count")
        db.execute("PRAGMA query_only = 1" if what == "read-only" else f"PRAGMA max_page_count = {pages}")
        for number in range(500):
            run.reserve(f"w{number}", "worker", "p")
        run.begun("w1", os.getpid())
        run.ended("w1")
    assert caplog.text.count("can't be written") == 1
    assert not run.run_dir.exists()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No directory in which anything can be made."""

    def refuse(*, prefix: str, dir: str) -> str:
        raise OSError(28, "No space left on device", dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_where_no_directory_can_be_made_one_error_names_those_that_were_tried(nowhere: Path, state: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with (
        pytest.raises(ConfigError, match=r"TMPDIR: .* tried .*No space left.*, /var/tmp") as caught,
        open_run(str(state)),
    ):
        pass
    assert str(nowhere) in str(caught.value) and caught.value.details["key"] == "TMPDIR"
    assert os.listdir("/proc/self/fd") == before
    assert list_runs(state) == []


def test_a_temporary_directory_that_is_missing_or_no_text_is_passed_over(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(odd)
    for place in (odd, str(tmp_path / "missing"), "/" + "x" * 90):
        monkeypatch.setattr(tempfile, "tempdir", place)
        with open_run(str(state)) as run:
            assert run.run_dir.parent == Path("/tmp")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (_ for _ in ()).throw(FileNotFoundError(2, "No usable")))
    with open_run(str(state)) as run:
        assert run.run_dir.parent == Path("/tmp")


def test_opening_a_registry_that_is_refused_leaves_nothing_open(state: Path) -> None:
    state.mkdir(mode=0o700)
    (state / "registry.sqlite3").symlink_to("elsewhere")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ConfigError, match="is no plain file"):
        Registry(state)
    assert os.listdir("/proc/self/fd") == before
    assert not (state / "elsewhere").exists()


def test_the_longest_place_for_sockets_is_taken_and_one_longer_is_the_last_resort(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "snakepit-x-"
    # pytest's own directory may be too long already.
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    request.addfinalizer(lambda: shutil.rmtree(base))
    short = base / "t"
    fits = base / ("f" * (80 - len(prefix) - len(str(base)) - 1))
    longer = base / ("l" * (81 - len(prefix) - len(str(base)) - 1))
    assert len(str(fits)) + len(prefix) == 80
    for place in (short, fits, longer):
        place.mkdir()
    for places, chosen in (
        ((fits, short), fits),
        ((longer, short), short),
        ((longer,), longer),
        ((longer, fits), fits),
    ):
        monkeypatch.setattr(run_directory, "_places", lambda places=places: map(str, places))
        made = run_directory._make(prefix)
        assert made.parent == chosen
        made.rmdir()


def test_a_host_without_standard_input_gives_its_lock_back_too(state: Path) -> None:
    kept = os.dup(0)
    try:
        with open_run(str(state)) as run:
            assert run._records is not None
            # As where it was the lowest number that was free.
            lock, run._records._lock = run._records._lock, os.dup2(run._records._lock, 0)
            os.close(lock)
            assert len(list_runs(state)) == 1
        assert list_runs(state) == [] and run._records._lock == -1
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(0)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
