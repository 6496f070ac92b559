"""The pytest plugin: installed with the package, and without effect on tests that ask for none of its fixtures.

Its fixtures are asynchronous; anyio's own pytest plugin runs them, on the event loop that the test's ``anyio_backend`` says.
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
    request: pytest.FixtureRequest, anyio_backend: Any, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pool]:
    """A pool of real workers, on a state directory of its own, closed in order after the test; of one worker unless told.

    What it is of is said by the marker: ``@pytest.mark.snakepit_pool("my_module:Math", size=2)``; marks of a class or module
    count, the nearest option wins.
    """
    from snakepit_trio.config import PoolConfig, RuntimeConfig
    from snakepit_trio.runtime import open_runtime

    arguments: list[Any] = []
    options: dict[str, Any] = {"size": 1}
    for mark in reversed(list(request.node.iter_markers(_MARK))):
        arguments = list(mark.args) or arguments
        options.update(mark.kwargs)
    if len(arguments) == 1 and "adapter" not in options:
        options["adapter"] = arguments[0]
    if "adapter" not in options or len(arguments) > 1:
        pytest.fail(f'say which adapter: @pytest.mark.{_MARK}("my_module:Math", size=2)', pytrace=False)
    state = str(tmp_path_factory.mktemp("snakepit"))
    config = RuntimeConfig(pools=[PoolConfig(**options)], state_dir=state, control=False)
    async with open_runtime(config) as runtime:
        yield runtime.pool(config.pools[0].name)


@pytest.fixture
def snakepit_faults(snakepit_pool: Pool) -> Iterator[Faults]:
    """Faults for the workers of ``snakepit_pool``; what is still stopped afterwards goes on."""
    from .faults import Faults

    with Faults(snakepit_pool) as faults:
        yield faults


@pytest.fixture
def snakepit_leaks() -> Iterator[None]:
    """Fail the test when it leaves a process, thread, descriptor, shared memory or directory behind.

    Name it before the fixtures whose work it is to check: they are then taken down before it looks.
    """
    from .leaks import no_leaks

    with no_leaks():
        yield
