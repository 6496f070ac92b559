"""Relations between tasks by their nurseries."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import sniffio

__all__ = ["is_under"]


def is_under(task: int) -> bool:
    """Return whether a task can't end before the running task: it is the same task, or the running task is in a nursery below
    it.

    A task that asyncio itself has created, without a nursery, counts too, because it is unknown who waits for it.

    Args:
        task: The id of the task, as in :class:`anyio.TaskInfo`.
    """
    return any(found in (task, None) for found in _lineage())


def _lineage() -> Iterator[int | None]:
    """Yield the running task, the owner of its nursery, and so on; None after a task that is in no anyio nursery."""
    if sniffio.current_async_library() == "trio":
        import trio

        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None:
            yield id(task)
            task = None if task.parent_nursery is None else task.parent_nursery.parent_task
        return
    current = anyio.get_current_task()
    yield current.id
    yield current.parent_id
    # Looking further up requires a list of all tasks, and is seldom needed.
    parents = {info.id: info.parent_id for info in anyio.get_running_tasks()}
    parent = parents.get(current.parent_id) if current.parent_id is not None else None
    while parent is not None:
        yield parent
        parent = parents.get(parent)
