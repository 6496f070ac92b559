"""The pytest plugin. It is installed with the package, and does not affect tests that use none of its fixtures.

The fixture of a pool is asynchronous. The plugin that runs the test's event loop runs it: anyio's, pytest-trio, or
pytest-asyncio in auto mode.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from snakepit_trio.pool.pool import Pool

    from .faults import Faults

_MARK = "snakepit_pool"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARK}(adapter, **options): the adapter, and options of PoolConfig, of the pool that the fixture of this name opens.",
    )


@pytest.fixture
async def snakepit_pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pool]:
    """A pool of real workers with its own state directory, closed in order after the test; its size is 1 by default.

    The marker sets its options: ``@pytest.mark.snakepit_pool("my_module:Math", size=2)``. Markers of a class or module
    apply too, and the nearest option wins.
    """
    from snakepit_trio.config import PoolConfig
    from snakepit_trio.errors import ConfigError

    from .pools import open_test_pool

    arguments: list[Any] = []
    options: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(_MARK))):
        arguments = list(mark.args) or arguments
        options.update(mark.kwargs)
    if len(arguments) == 1 and "adapter" not in options:
        options["adapter"] = arguments[0]
    if "adapter" not in options or len(arguments) > 1:
        pytest.fail(f'say which adapter: @pytest.mark.{_MARK}("my_module:Math", size=2)', pytrace=False)
    try:
        PoolConfig(**options)
    except ConfigError as exc:
        pytest.fail(f"@pytest.mark.{_MARK}: {exc}", pytrace=False)
    async with open_test_pool(state_dir=tmp_path_factory.mktemp("snakepit"), **options) as pool:
        yield pool


@pytest.fixture
def snakepit_faults(snakepit_pool: Pool) -> Iterator[Faults]:
    """Faults for the workers of ``snakepit_pool``; workers that are still stopped after the test are resumed."""
    from .faults import Faults

    with Faults(snakepit_pool) as faults:
        yield faults


@pytest.fixture
def snakepit_leaks() -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor, shared memory or directory behind.

    Name it before the fixtures that it should check, so that they are torn down before the check.
    """
    from .leaks import no_leaks

    with no_leaks():
        yield
