"""The state directory: its path, and the check that only its user can have put anything there.

Its content determines which processes a run ends and where commands connect, so it must belong to the effective user,
and only that user and root may be able to replace it, by a link or by write access to a parent directory. A directory
of the user's own that is open to others is made private. Each file is checked in the same way when it is opened.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import grp
import os
import pwd
import stat
from collections import deque
from pathlib import Path

from snakepit_trio import _platform
from snakepit_trio.errors import ConfigError

__all__ = ["check_owner", "find_fault", "open_own", "private_directory", "state_directory"]

_EXPECTED = "a directory that belongs to this user, in a place where nobody else can replace it"
#: A path with more links is a circle.
_MOST_LINKS = 40


def state_directory(state_dir: str | None) -> Path:
    """Return the state directory: the given one, ``$SNAKEPIT_STATE_DIR``, or the user's default.

    Raises:
        ConfigError: None is given, and this user has no home directory.
    """
    chosen = state_dir or os.environ.get("SNAKEPIT_STATE_DIR") or _users_own()
    try:
        return Path(os.path.abspath(chosen))
    except FileNotFoundError:
        raise _refused(f"{chosen} is in a working directory that has been deleted", chosen) from None


def _users_own() -> str:
    import platformdirs

    try:
        found = platformdirs.user_state_dir("snakepit_trio")
    except RuntimeError:
        found = "~"
    # Some versions return a path that begins with "~" for an unknown home.
    if not os.path.isabs(found):
        raise _refused("this user has no home directory", found, "set HOME, XDG_STATE_HOME or SNAKEPIT_STATE_DIR")
    return found


def private_directory(directory: Path) -> Path:
    """Create a directory private to this user if it is missing, and check it.

    Returns:
        Its path without links.

    Raises:
        ConfigError: It is another user's, or another user could replace it; the error says who and how.
        OSError: It can't be created.
    """
    missing: list[str] = []
    above = _walk(directory)
    while not os.path.lexists(above):
        missing.append(above)
        above = os.path.dirname(above)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    # Checked again, because another process may have created it.
    found = _walk(directory)
    fd = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        check_owner(facts, found)
        if facts.st_mode & 0o077:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)
    return Path(found)


def find_fault(directory: Path) -> str | None:
    """Return why a directory must not be used; None if it may be used, or does not exist and may be created."""
    try:
        _walk(directory)
    except ConfigError as exc:
        return str(exc.details["reason"])
    return None


def check_owner(facts: os.stat_result, path: str) -> None:
    """Check that a file belongs to this user.

    Raises:
        ConfigError: It belongs to another user; the error names the path and the owner.
    """
    if facts.st_uid != os.geteuid():
        raise _refused(f"{path} belongs to {_user(facts.st_uid)}", path)


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file in a private directory, with mode 0600 if it is created. Never follows a link, never waits.

    Raises:
        ConfigError: It is not a regular file, or belongs to another user.
        OSError: It can't be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise _refused(f"{os.fspath(path)} is no plain file", os.fspath(path)) from None
        if isinstance(exc, PermissionError):
            # The owner may be another user.
            check_owner(os.lstat(path), os.fspath(path))
        raise
    try:
        facts = os.fstat(fd)
        check_owner(facts, os.fspath(path))
        if not stat.S_ISREG(facts.st_mode):
            raise _refused(f"{os.fspath(path)} is no plain file", os.fspath(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _walk(directory: Path) -> str:
    """Resolve a path link by link, and refuse it at the first step that another user could change.

    Returns:
        The path without links, as far as it exists.
    """
    path, links = "/", 0
    rest = deque(_steps(os.path.abspath(directory)))
    while True:
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return os.path.join(path, *rest)
        except OSError as exc:
            raise _refused(f"{path} can't be looked at: {exc.strerror}", path) from None
        except ValueError:
            raise _refused(f"{path!r} is no path", path) from None
        if stat.S_ISLNK(facts.st_mode):
            links += 1
            if facts.st_uid not in _trusted():
                raise _refused(f"{path} is a link of {_user(facts.st_uid)}", path)
            if links > _MOST_LINKS:
                raise _refused(f"{path} is a link that leads to itself", path)
            target = os.readlink(path)
            rest.extendleft(reversed(_steps(target)))
            path = "/" if os.path.isabs(target) else os.path.dirname(path)
        elif not stat.S_ISDIR(facts.st_mode):
            raise _refused(f"{path} is no directory", path)
        elif not rest:
            check_owner(facts, path)
            return path
        else:
            _check_above(facts, path)
        if rest:
            step = rest.popleft()
            path = os.path.dirname(path) if step == ".." else os.path.join(path, step)


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step not in ("", ".")]


def _check_above(facts: os.stat_result, path: str) -> None:
    """Refuse a path below a directory in which another user could rename it."""
    if facts.st_uid not in _trusted():
        raise _refused(f"{path}, above it, belongs to {_user(facts.st_uid)}", path)
    if facts.st_mode & stat.S_ISVTX:
        return
    mode = f"{stat.S_IMODE(facts.st_mode):o}"
    if facts.st_mode & stat.S_IWOTH:
        raise _refused(f"{path}, above it, can be written by everybody ({mode})", path)
    if facts.st_mode & stat.S_IWGRP and not _is_own_group(facts.st_gid):
        raise _refused(f"{path}, above it, can be written by group {facts.st_gid} ({mode})", path)


def _refused(why: str, path: str, remedy: str = "set SNAKEPIT_STATE_DIR to a directory of your own") -> ConfigError:
    return ConfigError(
        f"state_dir: expected {_EXPECTED}: {why}; {remedy}",
        details={"source": "code", "key": "state_dir", "expected": _EXPECTED, "reason": why, "path": path},
    )


def _trusted() -> frozenset[int]:
    """Return the users that may own parent directories: this one and root, by its number here."""
    return frozenset({os.geteuid(), *_roots()})


@functools.cache
def _roots() -> frozenset[int]:
    return _platform.root_users()


def _is_own_group(gid: int) -> bool:
    """Return whether a group is root's, or has only this user: many systems give each user a group of the same name."""
    if gid == 0:
        return True
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _user(uid: int) -> str:
    try:
        return f"user {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"user {uid}"
