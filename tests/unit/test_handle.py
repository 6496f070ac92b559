"""The end of a process handle."""

from __future__ import annotations

import anyio
import pytest

from snakepit_trio.launch.base import ExitStatus
from snakepit_trio.launch.handle import Handle

pytestmark = pytest.mark.anyio


class _Broken(Handle):
    """How it ended can't be found out."""

    released = 0

    def kill(self) -> None:
        pass

    async def wait(self) -> ExitStatus:
        await anyio.lowlevel.checkpoint()
        raise OSError("no such process")

    def _release(self) -> None:
        self.released += 1


async def test_what_it_has_is_given_back_whatever_the_wait_comes_to() -> None:
    handle = _Broken()
    with pytest.raises(OSError, match="no such process"):
        await handle.aclose()
    assert handle.released == 1
    await handle.aclose()
    assert handle.released == 1
