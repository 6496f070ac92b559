"""``sp.connect``: a connection to a runtime for the time of a block."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio

from snakepit_trio._bulkhead import InternalErrors
from snakepit_trio._home import Home
from snakepit_trio._interrupts import Unwrapped, managed
from snakepit_trio.config import TlsConfig
from snakepit_trio.errors import ConfigError
from snakepit_trio.wire.codec import DEFAULT_LIMIT
from snakepit_trio.wire.frames import FRAME_OVERHEAD

from .channel import Link, client_tls
from .client import Client

__all__ = ["connect"]


def connect(
    address: str,
    *,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    pool: str = "",
    tls: ssl.SSLContext | TlsConfig | str | bool | None = None,
    connect_timeout: float = 10.0,
    max_payload: int = DEFAULT_LIMIT,
) -> AbstractAsyncContextManager[Client]:
    """Connect to a runtime's bridge; the block receives a client with the methods of a pool.

    The connection is made at once. After a loss the next call makes a new one, and attempts continue for
    ``connect_timeout`` seconds. A call in progress at the loss fails with ``ConnectionLost``, unless it is idempotent
    or certainly had not begun. Leaving the block, also by a cancellation, ends the calls and closes the connection.

    Args:
        address: ``runtime.bridge.address``: ``unix:PATH`` or ``tcp:HOST:PORT``.
        token: ``runtime.bridge.token``; by default ``$SNAKEPIT_TOKEN``.
        token_file: A file that holds the token, read again for each connection.
        pool: The pool to use; by default ``"default"``, or the only pool.
        tls: True for the system's authorities; the path of a custom authority; a :class:`~snakepit_trio.TlsConfig` to
            present a certificate too; or an :class:`ssl.SSLContext`.
        connect_timeout: Seconds.
        max_payload: The largest size of parameters, result or chunk, in bytes.

    Raises:
        ConnectionLost: The address does not answer.
        AuthenticationFailed: The token is wrong.
        ConfigError: An argument is invalid.
    """
    errors = InternalErrors()
    try:
        opening = _connect(errors, address, token, token_file, pool, tls, connect_timeout, max_payload)
    except Exception as exc:
        raise errors.caller(exc, "connection") from exc
    return errors.block(opening, "connection")


@managed
async def _connect(
    errors: InternalErrors,
    address: str,
    token: str | None,
    token_file: str | os.PathLike[str] | None,
    pool: str,
    tls: ssl.SSLContext | TlsConfig | str | bool | None,
    connect_timeout: float,
    max_payload: int,
) -> AsyncIterator[Client]:
    # Checked now, and again for each connection, because the file may change.
    _token(token, token_file)
    context = client_tls(tls)
    link = Link(
        address,
        token=lambda: _token(token, token_file),
        tls=context,
        max_message=max_payload + FRAME_OVERHEAD,
        connect_timeout=connect_timeout,
        errors=errors,
    )
    with Unwrapped() as unwrapped:
        async with anyio.create_task_group() as nursery:
            link.nursery = nursery
            try:
                await link.get()
                errors.home = Home()
                yield Client(link, pool, max_payload)
            except BaseException as exc:
                if isinstance(exc, anyio.get_cancelled_exc_class()):
                    raise
                unwrapped.raised = exc
            finally:
                link.close()
                nursery.cancel_scope.cancel()


def _token(token: str | None, token_file: str | os.PathLike[str] | None) -> str:
    if token_file is not None:
        try:
            token = Path(token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"token_file: {token_file} can't be read: {exc}", details={"key": "token_file", "expected": "a file"}
            ) from None
    elif token is None:
        token = os.environ.get("SNAKEPIT_TOKEN")
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            "token: give it, or a token_file, or set SNAKEPIT_TOKEN",
            details={"key": "token", "expected": "the bridge's token"},
        )
    return token
