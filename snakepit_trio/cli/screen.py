"""The screen of ``snakepit top``, made with Textual. All data comes over the control socket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import anyio
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Label, RichLog, Static

from snakepit_trio.control.client import connect
from snakepit_trio.errors import SnakepitError

from .status import count, ready_of, state_of
from .words import cell, duration, size

__all__ = ["Screen", "spark"]

_BARS = "▁▂▃▄▅▆▇█"
#: Samples in a sparkline.
_SAMPLES = 16
#: The events that are shown; events of single requests would be too many.
_EVENTS = ("worker.", "slot.", "pool.", "queue.", "circuit.", "recorder.")
#: Seconds. After this time the screen reports that an action is taking long.
_ACTION = 120.0
_STYLES = {
    "ready": "green", "busy": "cyan", "starting": "yellow", "draining": "yellow", "cordoned": "magenta", "spare": "blue",
    "failed": "bold red", "crashed": "red", "stopped": "dim",
}  # fmt: skip


def spark(values: Sequence[float | None]) -> str:
    """Return a row of bars, scaled to the greatest value; a blank for a missing value."""
    known = [value for value in values if value is not None]
    most = max(known, default=0.0)
    return "".join(
        " " if value is None else _BARS[min(7, int(value / most * 7.999)) if most > 0 else 0] for value in values
    )


class Confirm(ModalScreen[bool]):
    """A question before an action on a worker."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]
    CSS = "Confirm { align: center middle; } #question { padding: 1 3; border: thick $warning; width: auto; height: auto; }"

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Label(Text(f"{self._question}\n\n[y] yes   [n] no"), id="question")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Screen(App[int]):
    """The application. Its result is the command's exit code.

    Args:
        path: The runtime's control socket.
        interval: Seconds between two updates.
    """

    TITLE = "snakepit top"
    CSS = """
    #title { height: 1; background: $primary; color: $text; padding: 0 1; }
    .head { height: 1; color: $text-muted; padding: 0 1; text-style: bold; }
    #pools { height: auto; max-height: 30%; }
    #workers { height: 1fr; }
    #requests { height: auto; max-height: 25%; }
    #events { height: 8; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "ask('drain')", "drain"),
        Binding("c", "ask('cordon')", "cordon"),
        Binding("u", "ask('uncordon')", "uncordon"),
        Binding("r", "ask('restart')", "restart"),
        Binding("k", "ask('kill')", "kill"),
        Binding("q", "quit", "quit"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, path: str, *, interval: float = 1.0) -> None:
        super().__init__()
        self._path = path
        self._interval = interval
        self._latencies: dict[str, deque[float | None]] = {}
        self._queues: dict[str, deque[float | None]] = {}
        self._done: dict[str, tuple[float, int]] = {}
        #: The number of updates; a test waits for them.
        self.looks: int = 0

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static("", id="title")
            yield DataTable(id="pools", cursor_type="none", zebra_stripes=False)
            yield Static("workers", classes="head")
            yield DataTable(id="workers", cursor_type="row", zebra_stripes=True)
            yield Static("longest requests", classes="head")
            yield DataTable(id="requests", cursor_type="none")
            yield Static("events", classes="head")
            yield RichLog(id="events", max_lines=200)
        yield Footer()

    def on_mount(self) -> None:
        self._table("pools").add_columns(
            "pool", "ready", "busy", "queued", "running", "done", "failed", "restarts", "calls/s", "p50", "p95",
            "p50 of late", "queue of late",
        )  # fmt: skip
        for name in ("id", "pool", "slot", "state", "pid", "calls", "done", "memory", "heartbeat", "reason"):
            self._table("workers").add_column(name, key=name)
        self._table("requests").add_columns("request", "pool", "tool", "phase", "age", "time left", "worker")
        self._table("workers").focus()
        self.run_worker(self._watch(), exclusive=False)
        self.run_worker(self._listen(), exclusive=False)

    def _table(self, id: str) -> DataTable[Text]:
        return self.query_one(f"#{id}", DataTable)

    # ---- what the runtime tells ----------------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            async with connect(self._path) as client:
                while True:
                    status = await client.ask("status", window=max(2.0, 2 * self._interval))
                    if not self.is_running:
                        return  # Its widgets are being removed.
                    self._show(status)
                    self.looks += 1
                    await anyio.sleep(self._interval)
        except SnakepitError as exc:
            self.exit(1, message=f"snakepit: {cell(exc.message)}")

    async def _listen(self) -> None:
        log = self.query_one("#events", RichLog)
        try:
            async with connect(self._path) as client:
                async for line in client.events(*_EVENTS):
                    log.write(_event(line["event"]))
        except SnakepitError:
            return  # The other connection reports that.

    def _show(self, status: dict[str, Any]) -> None:
        versions = status["versions"]
        self.query_one("#title", Static).update(
            Text(
                f"{cell(status['program']) or 'python'}  run {status['run_id']}  pid {status['pid']}  up "
                f"{duration(status['uptime'])}  Python {versions['python']} on {status['backend']}  "
                f"{size(status['rss'])}  {count(status['sessions'], 'session')}"
            )
        )
        pools = self._table("pools")
        pools.clear()
        for pool in status["pools"]:
            pools.add_row(*(Text(value) for value in self._pool_row(pool)))
        self._show_workers(status["pools"])
        requests = self._table("requests")
        requests.clear()
        open_ones = [(pool["name"], request) for pool in status["pools"] for request in pool["requests"]]
        for name, request in sorted(open_ones, key=lambda one: -one[1]["age"])[:6]:
            values = (
                request["request_id"], name, request["tool"], request["phase"], duration(request["age"]),
                duration(request["time_left"]), request["worker_id"],
            )  # fmt: skip
            requests.add_row(*(Text(cell(value)) for value in values))

    def _pool_row(self, pool: dict[str, Any]) -> tuple[str, ...]:
        name, stats, latency = pool["name"], pool["stats"], pool["latency"]
        now = time.monotonic()
        ended = stats["completed"] + stats["failed"]
        before, count = self._done.get(name, (now, ended))
        self._done[name] = (now, ended)
        rate = (ended - count) / (now - before) if now > before else 0.0
        latencies = self._latencies.setdefault(name, deque(maxlen=_SAMPLES))
        latencies.append(latency["p50"])
        queues = self._queues.setdefault(name, deque(maxlen=_SAMPLES))
        queues.append(float(stats["queued"]))
        return (
            cell(name), ready_of(stats), str(stats["busy"]), str(stats["queued"]),
            str(stats["in_flight"]), str(stats["completed"]), str(stats["failed"] + stats["timed_out"]),
            str(stats["restarts"]), f"{rate:.0f}", duration(latency["p50"]), duration(latency["p95"]),
            spark(latencies).rjust(_SAMPLES), spark(queues).rjust(_SAMPLES),
        )  # fmt: skip

    def _show_workers(self, pools: list[dict[str, Any]]) -> None:
        """Update only changed rows, so that the cursor stays on its worker."""
        table = self._table("workers")
        now = time.time()
        present = set()
        for pool in pools:
            for worker in pool["workers"]:
                id, beat = cell(worker["id"]), worker["last_heartbeat"]
                present.add(id)
                row = {
                    "id": Text(id),
                    "pool": Text(cell(pool["name"])),
                    "slot": Text(str(worker["slot"])),
                    "state": Text(state_of(worker), style=_STYLES.get(worker["state"], "")),
                    "pid": Text(str(worker["pid"] or "-")),
                    "calls": Text(str(worker["in_flight"])),
                    "done": Text(str(worker["requests"])),
                    "memory": Text(size(worker["rss"] or None)),
                    "heartbeat": Text("-" if beat is None else duration(max(0.0, now - beat))),
                    "reason": Text(cell(worker["reason"])),
                }
                if id in table.rows:
                    for column, value in row.items():
                        if table.get_cell(id, column) != value:
                            table.update_cell(id, column, value, update_width=True)
                else:
                    table.add_row(*row.values(), key=id)
        for key in [key for key in table.rows if key.value not in present]:
            table.remove_row(key)

    # ---- what the user does --------------------------------------------------------------------------

    def action_ask(self, op: str) -> None:
        """Ask for confirmation, then run this action on the selected worker."""
        table = self._table("workers")
        if not table.row_count:
            return
        row = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        if row is None:
            return
        words = {
            "drain": "and wait until it holds no calls",
            "cordon": "so that it gets no more calls",
            "uncordon": "so that it gets calls again",
            "restart": "once a new one is ready in its place",
            "kill": "at once, with the calls that it holds",
        }

        def answered(yes: bool | None) -> None:
            if yes:
                self.run_worker(self._do(op, row), exclusive=False)

        self.push_screen(Confirm(f"{op} worker {row} {words[op]}?"), answered)

    async def _do(self, op: str, worker: str) -> None:
        try:
            async with connect(self._path) as client:
                more = {"timeout_seconds": _ACTION} if op == "drain" else {}
                await client.ask(op, timeout=_ACTION + 5.0, worker=worker, **more)
        except SnakepitError as exc:
            self.notify(cell(exc.message), title=f"{op} {worker}", severity="error", markup=False)
        else:
            self.notify("done", title=f"{op} {worker}")


def _event(event: dict[str, Any]) -> Text:
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    facts = {**event["measurements"], **event["metadata"]}
    words = "  ".join(
        f"{cell(key)}={cell(f'{value:.3g}' if isinstance(value, float) else value)}" for key, value in facts.items()
    )
    return Text.assemble((at, "dim"), "  ", (cell(event["name"]), "bold"), "  ", words)
