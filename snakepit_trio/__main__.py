"""``python -m snakepit_trio`` is the ``snakepit`` command."""

from snakepit_trio.cli import main

main()
