"""An adapter whose import puts something else in the place of the standard streams, as programs without a terminal do."""

import io
import os
import sys

import snakepit_trio as sp

sys.stdout = io.StringIO()
sys.stderr = None
sys.stdin = None


@sp.tool
def speak() -> str:
    print("to nobody")
    os.write(2, b"to the log\n")
    return sys.stdout.getvalue()
