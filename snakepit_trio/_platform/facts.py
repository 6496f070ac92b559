"""What both forms of the platform seam share: the records that they give, and how descriptors come over a socket."""

from __future__ import annotations

import array
import socket
from typing import NamedTuple

__all__ = ["Identity", "Peer", "ProcessFacts", "receive"]


class Identity(NamedTuple):
    """A process that no other can be taken for: an id is used again, an id with its start time is not.

    The unit of a start time is the form's own. Processes of one run are all in one form, so they compare them.
    """

    pid: int
    started: int


class ProcessFacts(NamedTuple):
    """One process as the system shows it.

    Attributes:
        pid: Its id.
        started: Its start time, as in :class:`Identity`.
        group: Its process group.
        program: The file that it runs.
        argv: Its command line.
        environment: What it was started with, as ``NAME=VALUE``.
    """

    pid: int
    started: int
    group: int
    program: str
    argv: tuple[str, ...]
    environment: frozenset[str]


class Peer(NamedTuple):
    """The process at the other end of a Unix socket.

    Attributes:
        pid: Its id; None where the system tells only the user.
        user: Its effective user.
        group: Its effective group.
    """

    pid: int | None
    user: int
    group: int


def receive(sock: socket.socket, size: int, most: int, flags: int) -> tuple[bytes, list[int]]:
    """Receive from a Unix socket, descriptors too. ``socket.recv_fds`` loses its flags, as Python 3.11 to 3.13 have it."""
    fds = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(most * fds.itemsize), flags)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
