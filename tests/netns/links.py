"""Network namespaces with links between them: a host's, which a test is moved into, and the workers'.

Needs root, ``ip``, and ``nft`` to lose packets. Nothing is changed outside of the namespaces, and they go with the fixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest

__all__ = ["Far", "Network", "network"]

_NEW_NET = 0x40000000
_ETH_P_ALL = 3


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _enter(path: str) -> None:
    """Move this thread, and those that it starts from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path) as file:
        if libc.setns(file.fileno(), _NEW_NET):
            raise OSError(ctypes.get_errno(), "setns")


@attrs.frozen
class Far:
    """A namespace at the other end of a link.

    Attributes:
        name: Of the namespace.
        near: The interface at this end of the link; the other end is called ``far``.
        own, address: This end's address, and its.
    """

    name: str
    near: str
    own: str
    address: str

    @property
    def command(self) -> list[str]:
        """What runs a command in it."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Take its end of the link down."""
        _run("ip", "-n", self.name, "link", "set", "dev", "far", "down")

    def lose(self, percent: int) -> None:
        """Lose so many of the packets that come in at both ends, at random."""
        for prefix, interface in ((self.command, "far"), ([], self.near)):
            for words in (
                "add table inet lossy",
                "add chain inet lossy input { type filter hook input priority 0 ; }",
                f"add rule inet lossy input iifname {interface} numgen random mod 1000 < {percent * 10 - 1} counter drop",
            ):
                _run(*prefix, "nft", words)

    def lost(self) -> int:
        """How many packets were lost so far, in both directions."""
        return sum(
            expression["counter"]["packets"]
            for prefix in (self.command, [])
            for entry in json.loads(_run(*prefix, "nft", "-j", "list", "table", "inet", "lossy"))["nftables"]
            for expression in entry.get("rule", {}).get("expr", ())
            if "counter" in expression
        )

    def tap(self) -> socket.socket:
        """A socket that receives every frame of the link, as anyone on the way could."""
        tapped = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        tapped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        tapped.bind((self.near, 0))
        tapped.setblocking(False)
        return tapped


@attrs.frozen
class Network:
    """The namespaces that workers may be in; this thread is in the one that all are linked to."""

    far: list[Far]


@contextmanager
def network(places: int) -> Iterator[Network]:
    """Make them, and move the calling thread. Skips the test, with the reason, where that is not allowed."""
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no `{tool}`; Debian's packages are iproute2 and nftables")
    base = f"spt{os.getpid()}"
    made: list[str] = []
    home = f"/proc/self/task/{os.getpid()}/ns/net"
    try:
        try:
            for name in (base, *(f"{base}-{number}" for number in range(places))):
                _run("ip", "netns", "add", name)
                made.append(name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            far = [_link(base, f"{base}-{number}", number) for number in range(places)]
        except OSError as exc:
            pytest.skip(f"no network namespaces here: {exc}")
        with open(home) as before:
            _enter(f"/run/netns/{base}")
            try:
                yield Network(far)
            finally:
                _enter(f"/proc/self/fd/{before.fileno()}")
    finally:
        for name in made:
            # A link goes with either of its ends, though a thread may keep a namespace for a while.
            with contextlib.suppress(OSError):
                _run("ip", "-n", name, "link", "del", "dev", "far")
            _run("ip", "netns", "del", name)


def _link(base: str, name: str, number: int) -> Far:
    far = Far(name, f"near{number}", f"10.231.{number}.1", f"10.231.{number}.2")
    _run("ip", "-n", base, "link", "add", far.near, "type", "veth", "peer", "name", "far", "netns", name)
    for place, interface, address in ((base, far.near, far.own), (name, "far", far.address)):
        # Packets as they are on a wire, not as large as the kernel would hand them over.
        _run("ip", "-n", place, "link", "set", "dev", interface, "gso_max_segs", "1", "up")
        _run("ip", "-n", place, "address", "add", f"{address}/24", "dev", interface)
    return far
