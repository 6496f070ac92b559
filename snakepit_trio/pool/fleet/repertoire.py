"""The tools that the workers of one pool offer. All workers offer the same, because a call may go to any of them.

The first worker defines them. A worker that offers something else is refused, and its slot fails. The pool's tools
change in two ways: by a rolling restart, whose new workers may have another version of the adapter, and when no worker
is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from snakepit_trio.errors import WorkerStartupError
from snakepit_trio.tools.equivalence import equivalent
from snakepit_trio.tools.schemas import compile_check
from snakepit_trio.wire.frames import JSON, MSGPACK

if TYPE_CHECKING:
    from snakepit_trio.supervision.worker import Worker
    from snakepit_trio.wire.handshake_messages import ToolSpec

__all__ = ["Repertoire"]

#: The number of differences in an error.
_TOLD = 3


class Repertoire:
    """The tools of one pool.

    Attributes:
        tools: The tools by name, as described by the first worker; empty until one has been ready.
        checks: By tool, a function that refuses certainly invalid arguments, made on first use; None if there is none.
        encoding: The encoding of arguments that the workers read.
        encodings: All encodings that they read.
    """

    def __init__(self) -> None:
        self.tools: Mapping[str, ToolSpec] = {}
        self.checks: _Checks = _Checks(self.tools)
        self.encoding: int = MSGPACK
        self.encodings: frozenset[int] = frozenset({MSGPACK})
        #: The live workers, and whether they offer the current tools or earlier ones.
        self._workers: dict[Worker, bool] = {}

    def __repr__(self) -> str:
        return f"<Repertoire {', '.join(self.tools)} of {len(self._workers)} workers>"

    def join(self, worker: Worker) -> None:
        """Accept the tools of a worker that is about to accept calls.

        Raises:
            WorkerStartupError: They differ from the pool's; nothing was changed.
        """
        differences = self._differences(worker) if self.tools else []
        if differences and self._workers and not worker.renews:
            more = f" and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
            raise WorkerStartupError(
                f"offers something else than the pool's other workers: {', '.join(differences[:_TOLD])}{more}; "
                "rolling_restart() brings a new version in",
                details={"differs": True},
            )
        if differences or not self.tools:
            self.tools = {tool.name: tool for tool in worker.tools}
            self.checks = _Checks(self.tools)
            self.encoding, self.encodings = worker.encoding, worker.encodings
            self._workers = dict.fromkeys(self._workers, False)
        self._workers[worker] = True

    def leave(self, worker: Worker) -> None:
        """Record the end of a worker. Idempotent."""
        self._workers.pop(worker, None)

    def is_up_to_date(self, worker: Worker) -> bool:
        """Return whether a worker offers the pool's current tools, and not earlier ones."""
        return self._workers.get(worker, False)

    def _differences(self, worker: Worker) -> list[str]:
        """Return descriptions of the differences between a worker's tools and the pool's."""
        offered = {tool.name: tool for tool in worker.tools}
        found = [f"{name!r} is missing" for name in self.tools if name not in offered]
        for name, tool in offered.items():
            known = self.tools.get(name)
            if known is None:
                found.append(f"{name!r} is new")
                continue
            if tool.streaming != known.streaming:
                found.append(f"{name!r} gives {'a stream' if tool.streaming else 'one result'}")
            if tool.idempotent != known.idempotent:
                found.append(f"{name!r} is {'' if tool.idempotent else 'not '}idempotent")
            if not equivalent(tool.parameters_schema, known.parameters_schema):
                found.append(f"{name!r} has other parameters")
            if not equivalent(tool.result_schema, known.result_schema):
                found.append(f"{name!r} has another result")
        if worker.encoding != self.encoding:
            found.append("it reads JSON only" if worker.encoding == JSON else "it reads MessagePack")
        elif worker.encodings != self.encodings:
            found.append("it reads JSON, too" if JSON in worker.encodings else "it reads no JSON")
        return found


class _Checks(dict[str, Callable[[Mapping[str, Any]], None] | None]):
    """The checks of arguments by tool, made on first use.

    Args:
        tools: The tools.
    """

    def __init__(self, tools: Mapping[str, ToolSpec]) -> None:
        self._tools = tools

    def __missing__(self, name: str) -> Callable[[Mapping[str, Any]], None] | None:
        spec = self._tools.get(name)
        if spec is None:
            return None
        check = self[name] = compile_check(name, spec.parameters_schema)
        return check
