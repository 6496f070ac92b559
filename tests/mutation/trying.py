"""A copy of the tree in which one breakage at a time is tried; the tree itself is never touched."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

__all__ = ["PACKAGE", "ROOT", "Copy", "Trial", "copied"]

ROOT = Path(__file__).parents[2]
PACKAGE = "snakepit_trio"
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "_build", "results", "*.egg-info")
#: What ends the output of pytest and names the first test that failed.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Trial:
    """How tests went.

    Attributes:
        failed: The first test that failed, or the exit code of a pytest that could not run any; None when none has failed.
        seconds: How long they took.
        output: The last that they printed.
    """

    failed: str | None
    seconds: float
    output: str


class Copy:
    """A copy of the tree.

    Args:
        place: Its directory.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    @contextmanager
    def broken(self, path: str, source: bytes) -> Iterator[None]:
        """While the block runs, a file of the package has this source."""
        file = self.place / PACKAGE / path
        before, times = file.read_bytes(), file.stat()
        file.write_bytes(source)
        try:
            yield
        finally:
            file.write_bytes(before)
            # What was compiled of it before is still good.
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def test(self, tests: Sequence[str], timeout: float, seeds: int = 75) -> Trial:
        """Run tests until the first fails, or so many seconds are over. A test that hangs fails by its own time-out, before that;
        so when they are over nothing has been noticed."""
        env = {**os.environ, "PYTHONPATH": str(self.place), "SNAKEPIT_TEST_SEEDS": str(seeds)}
        env["HYPOTHESIS_PROFILE"] = "mutations"
        options = ["-x", "-q", "--backend", "trio", "--timeout", "60", "--tb", "short"]
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests], cwd=self.place, env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            output, failed = "not finished", None
        else:
            found = _FAILED.search(output)
            failed = None if process.returncode == 0 else found[1] if found else f"exit {process.returncode}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        return Trial(failed=failed, seconds=time.monotonic() - begun, output="\n".join(output.splitlines()[-40:]))


@contextmanager
def copied() -> Iterator[Copy]:
    """A copy of the tree, in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="mutations-", ignore_cleanup_errors=True) as name:
        place = Path(name) / "tree"
        shutil.copytree(ROOT, place, ignore=_NOT_COPIED, symlinks=True)
        yield Copy(place)
