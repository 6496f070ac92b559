"""Which task waits for which, by the nurseries that they are in."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import sniffio

__all__ = ["is_under"]


def is_under(task: int) -> bool:
    """Whether a task can't end before the running one: it is the same, or one whose nursery that is in, at whatever depth.

    A task that asyncio itself has made, and no nursery, counts as such: it is not known who waits for it.

    Args:
        task: Its id, as in :class:`anyio.TaskInfo`.
    """
    return any(found in (task, None) for found in _lineage())


def _lineage() -> Iterator[int | None]:
    """The running task, the one whose nursery it is in, and so on; None after the running one when that is in no nursery of
    anyio's."""
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
    # Further up there is seldom anything to see, and to see it costs a look at all tasks.
    parents = {info.id: info.parent_id for info in anyio.get_running_tasks()}
    parent = parents.get(current.parent_id) if current.parent_id is not None else None
    while parent is not None:
        yield parent
        parent = parents.get(parent)
