"""Whatever the codec takes crosses the border of the process unharmed: in both directions, by each way."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import snakepit_trio as sp
from snakepit_trio.wire.memory import THRESHOLD
from tests.property.test_codec import same, values

#: Arguments, results, chunks, and arguments and results of host tools; each value goes there and back.
WAYS = ("result", "chunk", "through_the_host")
large = st.sampled_from([bytes, bytearray]).map(lambda kind: kind(b"\0\xff" * (THRESHOLD // 2 + 1)))
arrays = hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return same(a, b)


async def by(pool: sp.Pool, way: str, value: Any) -> Any:
    with anyio.fail_after(60):
        if way != "chunk":
            return await pool.execute(way, {"value": value})
        async with pool.stream(way, {"value": value}) as chunks:
            (found,) = [chunk async for chunk in chunks]
        return found


def test_values_cross_exactly(anyio_backend: str) -> None:
    with (
        anyio.from_thread.start_blocking_portal(anyio_backend) as portal,
        portal.wrap_async_context_manager(sp.open_pool("tests.adapters.crossing", size=1)) as pool,
    ):

        async def give_back(value: Any) -> Any:
            return value

        pool.runtime.tools.register("give_back", give_back)

        @hypothesis.given(values | arrays | large)
        def crosses(value: Any) -> None:
            for way in WAYS:
                found = portal.call(by, pool, way, value)
                assert equal(value, found), way

        crosses()
        assert portal.call(pool.stats).restarts == 0
