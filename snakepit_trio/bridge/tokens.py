"""The token of clients: generated for the run, configured, or read from a file that may change."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from snakepit_trio.errors import ConfigError

if TYPE_CHECKING:
    from snakepit_trio.config import BridgeConfig

__all__ = ["Token", "TokenFile", "held_token"]

_log = logging.getLogger(__name__)

#: The largest size of a token file, in bytes.
_LONGEST = 8192


class Token:
    """A fixed token.

    Attributes:
        text: The token, without ``Bearer``.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def look(self) -> str:
        """Return the token that a new connection needs."""
        return self.text


class TokenFile(Token):
    """A token in a file. When the file changes, new connections need the new token.

    Raises:
        ConfigError: The file can't be read, can be read or written by others, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        super().__init__("")
        self._read()

    def look(self) -> str:
        """Return the token as :meth:`Token.look`. While the file is unusable, the previous token is valid."""
        try:
            if _stamp(os.stat(self._path)) != self._stamp:
                self._read()
                _log.info("the bridge has a new token from %s", self._path)
        except ConfigError as exc:
            _log.warning("the bridge keeps its token: %s", exc.message)
        except OSError:
            pass  # The file was removed, or is being replaced.
        return self.text

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                # Once for each state of the file, even an unusable one.
                self._stamp = _stamp(found)
                if not stat.S_ISREG(found.st_mode):
                    raise _refusal(f"{self._path} is no file", "a file")
                if found.st_mode & 0o077:
                    raise _refusal(
                        f"{self._path} can be read or written by others", f"a private file: chmod 600 {self._path}"
                    )
                if hasattr(os, "geteuid") and found.st_uid not in (0, os.geteuid()):
                    raise _refusal(f"{self._path} is another user's", "a file of this user")
                text = file.read(_LONGEST).decode("ascii", "replace").strip()
        except OSError as exc:
            raise _refusal(f"{self._path} can't be read: {exc.strerror}", "a readable file") from None
        if not text or not text.isprintable() or " " in text or "\ufffd" in text:
            raise _refusal(f"{self._path} does not hold a token", "one line of printable ASCII text without spaces")
        self.text = text


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _refusal(message: str, expected: str) -> ConfigError:
    return ConfigError(
        f"bridge.token_file: {message}",
        details={"source": "code", "key": "bridge.token_file", "expected": expected},
    )


@contextmanager
def held_token(config: BridgeConfig) -> Iterator[Token]:
    """Yield the token; a file that was created for it is removed at the end, unless other code has replaced it.

    Raises:
        ConfigError: The file can't be used.
    """
    if config.token_file is None:
        yield Token(config.token or secrets.token_urlsafe(32))
        return
    path = Path(config.token_file)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        yield TokenFile(path)
        return
    except OSError as exc:
        raise _refusal(f"{path} can't be made: {exc.strerror}", "a path in a directory that can be written") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
        made = os.fstat(descriptor)
    try:
        yield TokenFile(path)
    finally:
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):
                path.unlink()
        except FileNotFoundError:
            pass
