"""With trio-parallel."""

import trio
import trio_parallel
import words


async def main() -> None:
    async with trio_parallel.open_worker_context() as pool:
        found = {}

        async def work(text: str) -> None:
            found[text] = await pool.run_sync(words.count, text)

        async with trio.open_nursery() as nursery:
            for text in words.TEXTS[:3]:
                nursery.start_soon(work, text)
        print(sorted(found.items()))
        try:
            await pool.run_sync(words.count, "")
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    trio.run(main)
