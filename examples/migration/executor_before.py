"""With concurrent.futures."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial

import words


def main() -> None:
    with ProcessPoolExecutor(2) as pool:
        print(pool.submit(words.count, "a b c").result())
        for number in pool.map(partial(words.count, letter="o"), words.TEXTS[:3]):
            print(number)
        try:
            pool.submit(words.count, "").result()
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    main()
