"""How the stock clients connect: plain, or by TLS when there are files for it.

``SNAKEPIT_CA`` is the authority that they trust; ``SNAKEPIT_CERT`` and ``SNAKEPIT_KEY`` are what they show of themselves.
"""

from __future__ import annotations

import os
from typing import Any

import grpc
import grpc.aio


def _read(name: str) -> bytes | None:
    if name not in os.environ:
        return None
    with open(os.environ[name], "rb") as file:
        return file.read()


def channel(address: str, *, aio: bool) -> Any:
    kind = grpc.aio if aio else grpc
    target = address.removeprefix("tcp:")
    if "SNAKEPIT_CA" not in os.environ:
        return kind.insecure_channel(target)
    files = (_read("SNAKEPIT_CA"), _read("SNAKEPIT_KEY"), _read("SNAKEPIT_CERT"))
    return kind.secure_channel(target, grpc.ssl_channel_credentials(*files))
