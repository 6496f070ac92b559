"""The page docs/commands.md, made from the commands themselves: ``python -m snakepit_trio.cli.reference``."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

__all__ = ["document"]

_HEAD = """\
# Commands

<!-- Made by `python -m snakepit_trio.cli.reference > docs/commands.md`; a test compares. -->

What is printed for people is a table or a few lines; `--json` makes it JSON. Text that comes from workers is shown without what a
terminal would act on. Exit codes: 0 when all went well, 1 when something failed, 2 when the command line or the start is wrong,
130 after Ctrl-C, 143 after SIGTERM. No command needs a shell, or any program on the `PATH`.

`status`, `top` and `diagnose --flight` talk to a running runtime over its control socket, a Unix socket in its state directory
that only its user can open (`control=False` in `RuntimeConfig` leaves it out). No answer holds arguments, results,
environments or tokens.
"""
#: What the commands do not say themselves.
_NOTES = {
    "top": (
        "The arrows choose a worker; `d` drains it (no new calls, and it waits until the worker holds none), "
        "`c` and `u` cordon and uncordon it, `r` restarts it once another is ready in its place, `k` kills "
        "it; each after a question. While it runs, the runtime makes an event of each request, which costs it "
        "a little."
    ),
    "doctor": (
        "The state directory stays as it is, byte for byte; an adapter's worker is started on temporary "
        "state. Each check says `ok`, `WARN` or `FAIL`, and below it what to do."
    ),
    "diagnose": (
        "`--flight` fetches the last events, and how every request, worker and slot of a running runtime "
        "stands, without arguments, results or secrets."
    ),
    "new": "A directory `NAME` with an adapter `NAME.py`, its tests `test_NAME.py`, and a `snakepit.toml`.",
    "status": (
        "A run that is alive and does not answer is shown as such. `--tree` adds every task of the runtime, "
        "under the task that has opened its nursery."
    ),
}


def document() -> str:
    """The page, as Markdown."""
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
