"""How a worker that somebody else has started comes to the file of :mod:`.memory`: it opens its host's.

The host tells where its file is, by process id and descriptor, and what it has written into it: random bytes. A worker on the
same machine finds the file under these numbers, where the system lets the same user open it by them (on Linux). On another
machine, or where processes have other numbers, there is nothing under them, or something else.
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
    """The host's part: a new file for one worker. If none can be made, the offer is of nothing, and nobody will find it.

    Attributes:
        pid: Whose the descriptor is; 0 without a file.
        fd: The descriptor; 0 without a file.
        proof: What the file begins with.
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
        """A new descriptor of the file."""
        return os.dup(self.fd)

    def close(self) -> None:
        """Take it back, from whoever has not opened it yet. Idempotent."""
        if self.pid:
            _forks.close(self.fd)
            self.pid = self.fd = 0


def open_offered(pid: int, fd: int, proof: bytes) -> int | None:
    """The worker's part: a descriptor of the file that its host offers; None when it is not to be found here."""
    found = _platform.open_shared_file(pid, fd, FILE_NAME)
    if found is None:
        return None
    with contextlib.suppress(OSError):
        if os.pread(found, _PROOF, 0) == proof:
            return found
    os.close(found)
    return None
