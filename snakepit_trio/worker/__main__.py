"""``python -m snakepit_trio.worker``: a worker process, started by its host."""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys

from .prelude import follow, read_boot


def main() -> int:
    """Parse the command line and run the worker."""
    parser = argparse.ArgumentParser(prog="snakepit_trio.worker", description="Started by its host, not by hand.")
    parser.add_argument("--run", required=True)
    parser.add_argument("--worker", required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--marks", type=int, required=True)
    options = parser.parse_args()
    faulthandler.enable()
    boot = read_boot(options.lifeline)
    follow(json.loads(boot)["path"])
    # Only now, because its dependencies are on the host's path.
    from .boot import run_worker

    return run_worker(boot, options.lifeline, options.report, options.marks)


if __name__ == "__main__":
    sys.exit(main())
