"""The handoff of the file of :mod:`.memory` to a worker that has not inherited it.

The host sends the file's process id and descriptor, and random bytes that it has written into it. A worker on the same
machine finds the file under these numbers, if the system lets the same user open it that way (on Linux). On another
machine, or with other process ids, there is nothing or another file.
"""

from __future__ import annotations

import contextlib
import os
import secrets

from snakepit_trio import _forks, _platform

from .memory import FILE_NAME, make_file

__all__ = ["Offer", "open_offered"]

_PROOF = 32


class Offer:
    """The host's part: a new file for one worker. If none can be created, the offer is empty.

    Attributes:
        pid: The process id of the descriptor's owner; 0 without a file.
        fd: The descriptor; 0 without a file.
        proof: The first bytes of the file.
    """

    def __init__(self) -> None:
        self.pid: int = 0
        self.fd: int = 0
        self.proof: bytes = secrets.token_bytes(_PROOF)
        if not _platform.OFFERS_FILES:
            return
        with contextlib.suppress(OSError):
            fd = make_file()
            try:
                os.pwrite(fd, self.proof, 0)
            except OSError:
                os.close(fd)
                raise
            self.pid, self.fd = os.getpid(), _forks.keep(fd)

    def share(self) -> int:
        """Return a new descriptor of the file."""
        return os.dup(self.fd)

    def close(self) -> None:
        """Withdraw the offer, if the worker has not opened it yet. Idempotent."""
        if self.pid:
            _forks.close(self.fd)
            self.pid = self.fd = 0


def open_offered(pid: int, fd: int, proof: bytes) -> int | None:
    """The worker's part: return a descriptor of the file that its host offers, or None if it is not found here."""
    found = _platform.open_shared_file(pid, fd, FILE_NAME)
    if found is None:
        return None
    with contextlib.suppress(OSError):
        if os.pread(found, _PROOF, 0) == proof:
            return found
    os.close(found)
    return None
