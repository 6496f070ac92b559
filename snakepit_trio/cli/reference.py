"""Generate docs/commands.md from the commands: ``python -m snakepit_trio.cli.reference``."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

__all__ = ["document"]

_HEAD = """\
# Commands

<!-- Made by `python -m snakepit_trio.cli.reference > docs/commands.md`; a test compares. -->

Commands print tables or a few lines; `--json` prints JSON instead. Control characters in text from workers are escaped. Exit
codes: 0 for success, 1 if an operation failed, 2 for an invalid command line or a failed start, 130 after Ctrl-C, 143 after
SIGTERM. No command needs a shell, or any program on the `PATH`.

`status`, `top` and `diagnose --flight` use a running runtime's control socket, a Unix socket in its state directory that only its
user can open (`control=False` in `RuntimeConfig` disables it). No answer contains arguments, results, environments or tokens.
"""
#: Notes for the page, beyond the commands' own help.
_NOTES = {
    "top": (
        "The arrow keys choose a worker. `d` drains it (stop giving it calls, and wait for its calls to end), `c` and `u` "
        "cordon and uncordon it, `r` starts a replacement and then drains it, `k` kills it; each key asks for confirmation. "
        "While the screen is open, the runtime emits events for each request, which costs it a little."
    ),
    "doctor": (
        "The state directory is not changed; an adapter's worker is started on temporary state. Each check prints `ok`, "
        "`WARN` or `FAIL`, followed by advice."
    ),
    "diagnose": (
        "`--flight` fetches the last events and the state of every request, worker and slot of a running runtime, without "
        "arguments, results or secrets."
    ),
    "new": "The directory `NAME` contains the adapter `NAME.py`, its tests `test_NAME.py`, and a `snakepit.toml`.",
    "status": (
        "A live run that does not answer is shown as `silent`. `--tree` adds every task of the runtime, below the task that "
        "opened its nursery."
    ),
}


def document() -> str:
    """Return the page as Markdown."""
    import typer.main

    from . import build

    group: Any = typer.main.get_command(build())
    lines = [_HEAD]
    for name, command in group.commands.items():
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        options = [param for param in command.params if param.param_type_name == "option"]
        usage = " ".join(_usage(param) for param in arguments)
        lines += [
            f"## snakepit {name}",
            "",
            f"`snakepit {name}{' ' + usage if usage else ''}{' [OPTIONS]' if options else ''}`",
            "",
        ]
        lines += [_wrapped(paragraph) + "\n" for paragraph in inspect.cleandoc(command.help or "").split("\n\n")]
        if name in _NOTES:
            lines += [_wrapped(_NOTES[name]), ""]
        for param in [*arguments, *options]:
            names = ", ".join(f"`{option}`" for option in [*param.opts, *param.secondary_opts])
            label = f"`{(param.name or '').upper()}`" if param in arguments else names
            lines += [_wrapped(f"- {label}: {' '.join((param.help or '').split())}", indent="  ")]
        lines += [""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _usage(param: Any) -> str:
    name = (param.name or "").upper() + ("..." if param.nargs == -1 else "")
    return name if param.required else f"[{name}]"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    print(document(), end="")
