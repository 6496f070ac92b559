"""A Unix socket that listens at a path, and does so again when a cleaner has taken the file.

Nothing tells a process that the file of its socket is gone: the socket goes on as if it were there, and nobody finds it any
more. So the one who waits for clients looks now and then. What somebody else has put in the file's place is left to them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable

import anyio

from snakepit_trio import _forks

__all__ = ["UnixDoor"]

_log = logging.getLogger(__name__)

#: Seconds between two looks at the file.
_LOOK = 10.0


class UnixDoor:
    """A listening socket that only this user can open.

    Args:
        path: Where.
        backlog: How many clients may wait to be let in.
        restore: Makes the directory again, if that is gone too. Raises nothing.

    Attributes:
        sock: The socket, non-blocking. Another one when the file was made again.

    Raises:
        OSError: It can't be bound there.
    """

    def __init__(self, path: str | os.PathLike[str], *, backlog: int, restore: Callable[[], None]) -> None:
        self._path = os.fspath(path)
        self._backlog = backlog
        self._restore = restore
        self._failing = False
        self._made: os.stat_result
        self.sock: socket.socket = self._bind()

    def __repr__(self) -> str:
        return f"<UnixDoor {self._path!r}>"

    async def wait(self) -> None:
        """Wait until a client may be there. A cancellation leaves everything as it was."""
        while True:
            with anyio.move_on_after(_LOOK):
                await anyio.wait_readable(self.sock)
                return
            self._look()

    def close(self) -> None:
        """Listen no more. The file goes, unless somebody else has put one there."""
        self.sock.close()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(self._path), self._made):
                os.unlink(self._path)

    def _look(self) -> None:
        if os.path.lexists(self._path):
            return
        self._restore()
        try:
            made = self._bind()
        except OSError as exc:
            if not self._failing:
                _log.warning("the socket %s was removed, and can't be made again: %s", self._path, exc)
            self._failing = True
            return
        _log.warning("the socket %s was removed; it is made again", self._path)
        self._failing = False
        self.sock.close()
        self.sock = made

    def _bind(self) -> socket.socket:
        with _forks.unforked():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            _forks.keep(sock.fileno())
        try:
            sock.setblocking(False)
            # On Linux the file gets the socket's own mode, so that it is never open to others, not even for a moment.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self._path)
            os.chmod(self._path, 0o600)
            sock.listen(self._backlog)
            self._made = os.lstat(self._path)
        except BaseException:
            sock.close()
            raise
        return sock
