"""With snakepit_trio."""

import trio
import words

import snakepit_trio as sp

count = sp.tool(words.count)


async def main() -> None:
    async with sp.open_pool("trio_parallel_after", size=2) as pool:
        found = {}

        async def work(text: str) -> None:
            found[text] = await pool.execute("count", {"text": text})

        async with trio.open_nursery() as nursery:
            for text in words.TEXTS[:3]:
                nursery.start_soon(work, text)
        print(sorted(found.items()))
        try:
            await pool.execute("count", {"text": ""})
        except sp.remote(ValueError) as error:
            print(error.remote_message)


if __name__ == "__main__":
    trio.run(main)
