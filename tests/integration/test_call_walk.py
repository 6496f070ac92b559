"""A plain call's way through the host does not grow unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys

#: What it takes now; each function is paid for by every call. To be lowered whenever the way has become shorter.
MOST_CALLS, MOST_FILES = 61, 25


def test_the_way_of_a_call_is_no_longer_than_it_was() -> None:
    # In a process of its own: here another test may have set tracing up, which is no part of a plain call.
    command = [sys.executable, "-m", "benchmarks.call_walk", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = [tuple(step) for step in json.loads(done.stdout)]
    listed = "\n".join(f"{file} {name}" for file, name in found)
    assert found[0] == ("pool/calls/interface.py", "Calling.execute")
    assert ("wire/codec/codec.py", "decode") in found
    assert len(found) <= MOST_CALLS, listed
    assert len({file for file, _ in found}) <= MOST_FILES, listed
