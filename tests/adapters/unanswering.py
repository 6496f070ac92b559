"""Adapters whose health() never answers, in workers that would wait for ever where they wait for a while."""

import os
import threading
from pathlib import Path

import anyio

import snakepit_trio as sp
from snakepit_trio.worker import loop_runner, server

server._GONE_GRACE = loop_runner.CLEANUP_TIME = 1000.0


def touch(name: str) -> None:
    Path(os.environ["UNANSWERING"], name).touch()


class Plain(sp.Adapter):
    def health(self) -> bool:
        touch("asked")
        threading.Event().wait()
        return True

    def teardown(self) -> None:
        touch("torn down")

    @sp.tool
    def echo(self, value: str) -> str:
        return value


class Mixed(Plain):
    @sp.tool
    async def echo_async(self, value: str) -> str:
        return value


class Async(Mixed):
    async def health(self) -> bool:  # type: ignore[override]
        touch("asked")
        await anyio.sleep_forever()
        return True
