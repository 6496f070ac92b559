"""A pipeline over tables and arrays, on Trio, with a step that leaks and a step that hangs: ``python pipeline.py``.

Frames and arrays travel without being pickled. An array of 50 MB goes through shared memory, and the tool gets it read-only.
"""

import time
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import trio

import snakepit_trio as sp

# ---- what the workers run ----------------------------------------------------------------------------

_kept: list[bytearray] = []


@sp.tool
def readings(day: int) -> pd.DataFrame:
    random = np.random.default_rng(day)
    return pd.DataFrame({"city": random.choice(["Oslo", "Rome"], 1000), "degrees": random.normal(10 + day, 5, 1000)})


@sp.tool
def by_city(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.group_by("city").agg(pl.col("degrees").mean()).sort("city")


@sp.tool
def centred(image: np.ndarray) -> np.ndarray:
    # `image -= image.mean()` would be refused: the array is the caller's, and read-only.
    return image - image.mean()


@sp.tool(idempotent=True)
def leaky(number: int) -> int:
    _kept.append(bytearray(b"x") * (20 << 20))
    return number


@sp.tool
def hangs() -> None:
    time.sleep(3600)


# ---- the pipeline ------------------------------------------------------------------------------------


async def tables(pool: sp.Pool) -> None:
    async with pool.map("readings", ({"day": day} for day in range(3))) as days:
        async for frame in days:
            means = await pool.execute("by_city", {"frame": pl.from_pandas(frame)})
            print(f"day {days.index}:", dict(zip(means["city"], means["degrees"].round(), strict=True)))


async def arrays(pool: sp.Pool) -> None:
    images = [np.full(6_250_000, float(number)) for number in range(4)]
    async with pool.map("centred", ({"image": image} for image in images), limit=2) as results:
        found = [float(np.abs(result).max()) async for result in results]
    print(f"{len(found)} arrays of {images[0].nbytes // 1_000_000} MB, centred:", found)


async def leak(pool: sp.Pool) -> None:
    """Workers that have grown beyond `max_rss` are replaced between two calls."""
    async with pool.runtime.events.subscribe("worker.") as events:
        results = await pool.execute_many("leaky", ({"number": number} for number in range(24)), limit=2)
        replaced: Any = False
        with trio.move_on_after(20):
            while not replaced:
                event = await events.__anext__()
                replaced = event.metadata.get("reason") == "max_rss"
    print(f"{len(results)} leaky calls, none lost; workers replaced: {replaced}")


async def hang(pool: sp.Pool) -> None:
    """A tool that does not heed its cancellation costs its worker, not the pool."""
    try:
        await pool.execute("hangs", timeout=0.5)
    except sp.RequestTimeout as error:
        print(error)
    print("and the pool goes on:", len(await pool.execute("readings", {"day": 1})), "readings")


async def main() -> None:
    async with sp.open_pool("pipeline", size=2, max_rss=300 << 20, health_interval=0.2, cancel_grace=0.2) as pool:
        for step in (tables, arrays, leak, hang):
            await step(pool)


if __name__ == "__main__":
    trio.run(main)
