"""The state directory is its user's alone, or is not used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from snakepit_trio.errors import ConfigError
from snakepit_trio.supervision.state_directory import find_fault, open_own, private_directory, state_directory

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_private_with_all_that_is_above_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = private_directory(tmp_path / "a/b/state")
    finally:
        os.umask(before)
    assert made == tmp_path / "a/b/state"
    assert [mode(tmp_path / place) for place in ("a", "a/b", "a/b/state")] == [0o700] * 3


def test_one_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    private_directory(state)
    assert mode(state) == 0o700


def test_links_of_its_own_user_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one/deep/../deep")
    assert private_directory(tmp_path / "two/state") == tmp_path / "real/deep/state"
    assert private_directory(tmp_path / "two/state") == tmp_path / "real/deep/state"


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def open_to_a_group(path: Path) -> None:
    path.mkdir()
    os.chown(path, -1, NOBODY)
    path.chmod(0o770)


def foreign(path: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, -1)


def foreign_link(path: Path) -> None:
    (path.parent / "mine").mkdir()
    path.symlink_to("mine")
    os.lchown(path, NOBODY, -1)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (open_to_all, "can be written by everybody (777)"),
        (circle, "leads to itself"),
        (Path.touch, "is no directory"),
        pytest.param(open_to_a_group, f"can be written by group {NOBODY} (770)", marks=as_root),
        pytest.param(foreign, f"belongs to user {NOBODY}", marks=as_root),
        pytest.param(foreign_link, f"is a link of user {NOBODY}", marks=as_root),
    ],
)
def test_nothing_is_made_where_others_could_replace_it(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    above = tmp_path / "above"
    make(above)

    def refused() -> None:
        with pytest.raises(ConfigError) as caught:
            private_directory(above / "state")
        assert said in str(caught.value) and str(above) in str(caught.value)
        assert caught.value.details["key"] == "state_dir" and caught.value.details["path"] == str(above)
        assert said in (find_fault(above / "state") or "")

    refused()
    if above.is_dir():
        assert not list(above.iterdir())
        # Nor is one used that is there already.
        (above / "state").mkdir(mode=0o700)
        refused()


def test_a_sticky_directory_is_a_place_like_tmp(tmp_path: Path) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    assert private_directory(place / "state") == place / "state"


@as_root
def test_somebody_elses_is_left_as_it_is(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    os.chown(state, NOBODY, -1)
    with pytest.raises(ConfigError, match=f"{state} belongs to user {NOBODY}"):
        private_directory(state)
    assert mode(state) == 0o755


@pytest.mark.parametrize("path", ["a\0b", "/tmp/\ud800", "x" * 5000])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError):
        private_directory(state_directory(path))


def test_a_user_without_a_home_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SNAKEPIT_STATE_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", "/home/me")
    assert state_directory(None) == Path("/home/me/.local/state/snakepit_trio")
    # What Python makes of "~" where nobody knows whose home that is.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"no home directory.*SNAKEPIT_STATE_DIR"):
        state_directory(None)
    assert state_directory("here") == Path.cwd() / "here"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", pytest.param("foreign", marks=as_root)])
def test_only_plain_files_of_its_own_are_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    if kind == "link":
        path.symlink_to("other")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.chown(path, NOBODY, -1)
    before = os.listdir("/proc/self/fd")
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises((ConfigError, IsADirectoryError)):
            open_own(path, flags)
    assert os.listdir("/proc/self/fd") == before
    assert not (tmp_path / "other").exists()
