"""Tools that emit events."""

from __future__ import annotations

import snakepit_trio as sp


@sp.tool
def tell(ctx: sp.ToolContext, name: str, text: str) -> str:
    ctx.emit(name, {"done": 0.5}, {"text": text, "token": "hush", "worker_id": "a lie"})
    return ctx.request_id


@sp.tool
def measure_badly(ctx: sp.ToolContext) -> None:
    ctx.emit("measure", {"n": "many"})  # type: ignore[dict-item]


@sp.tool
def flood(ctx: sp.ToolContext, n: int) -> int:
    for number in range(n):
        ctx.emit("flood", {"n": number})
    return n
