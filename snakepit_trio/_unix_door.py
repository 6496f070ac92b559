"""A Unix socket that listens at a path, and is bound again after a cleaner has removed its file.

A process is not notified when the file of its socket is removed: the socket stays open, and clients can no longer find
it. So the task that waits for clients checks the file periodically. A file that other code has put in its place is left
alone.
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

#: Seconds between two checks of the file.
_LOOK = 10.0


class UnixDoor:
    """A listening Unix socket that only this user can connect to.

    Args:
        path: The path of the socket.
        backlog: The number of clients that may wait to be accepted.
        restore: Creates the directory again if it is gone. Raises nothing.

    Attributes:
        sock: The listening socket, non-blocking. Replaced when the file is created again.

    Raises:
        OSError: The socket can't be bound to the path.
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
        """Wait until a client may be there. A cancellation changes nothing."""
        while True:
            with anyio.move_on_after(_LOOK):
                await anyio.wait_readable(self.sock)
                return
            self._look()

    def close(self) -> None:
        """Stop listening, and remove the file unless other code has put it there."""
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
            # On Linux the file gets the socket's own mode, so it is never open to others, not even for a moment.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self._path)
            os.chmod(self._path, 0o600)
            sock.listen(self._backlog)
            self._made = os.lstat(self._path)
        except BaseException:
            sock.close()
            raise
        return sock
