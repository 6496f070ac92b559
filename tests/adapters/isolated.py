"""Tools that leave something behind in the task, thread or context that they ran in, and tools that would notice."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator

import snakepit_trio as sp

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


def _swap(name: str) -> list[str]:
    found = [who.get(), where.get()]
    who.set(name)
    where.set(name)
    return found


class Plain(sp.Adapter):
    """Nothing async."""

    def setup(self) -> None:
        where.set("set up")

    @sp.tool
    def bind(self, name: str) -> list[str]:
        """Bind the variables; gives what they were."""
        return _swap(name)

    @sp.tool(inline=True)
    def bind_inline(self, name: str) -> list[str]:
        return _swap(name)

    @sp.tool
    def bind_and_count(self, name: str) -> Iterator[list[str]]:
        yield _swap(name)
        yield _swap(name)

    @sp.tool
    def emits(self, ctx: sp.ToolContext, steps: int) -> int:
        """Emit events and ask the host from within an event loop of its own, and go on in that."""

        async def main() -> int:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            for number in range(steps):
                await asyncio.sleep(0.001)
                ctx.emit("app.step", {"n": number})
                assert asyncio.get_running_loop() is loop
                ctx.call_host_sync("hello", {"n": number})
                assert asyncio.current_task() is task
            await asyncio.sleep(0)
            return steps

        return asyncio.run(main())

    @sp.tool
    def emits_in_trio(self, ctx: sp.ToolContext) -> str:
        import trio

        async def main() -> str:
            await trio.sleep(0.001)
            ctx.emit("app.step", {"n": 1})
            ctx.call_host_sync("hello", {"n": 1})
            await trio.sleep(0.001)
            return trio.lowlevel.current_task().name

        return trio.run(main)

    @sp.tool
    def streams_in_loop(self, ctx: sp.ToolContext, n: int) -> Iterator[int]:
        """A generator that is run by an event loop of its own from chunk to chunk."""
        loop = asyncio.new_event_loop()
        try:
            for number in range(n):
                yield loop.run_until_complete(asyncio.sleep(0.001, number))
                ctx.emit("app.step", {"n": number})
        finally:
            loop.close()
