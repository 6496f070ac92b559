"""With snakepit_trio."""

import anyio
import words

import snakepit_trio as sp

count = sp.tool(words.count)


async def main() -> None:
    async with sp.open_pool("executor_after", size=2) as pool:
        print(await pool.execute("count", {"text": "a b c"}))
        async with pool.map("count", ({"text": text, "letter": "o"} for text in words.TEXTS[:3])) as numbers:
            async for number in numbers:
                print(number)
        try:
            await pool.execute("count", {"text": ""})
        except sp.remote(ValueError) as error:
            print(error.remote_message)


if __name__ == "__main__":
    anyio.run(main)
