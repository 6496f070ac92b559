"""How other interpreters are started, and what they find."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from snakepit_trio.errors import ConfigError
from snakepit_trio.launch import interpreter
from snakepit_trio.launch.base import WorkerSpec
from snakepit_trio.worker.prelude import joined


def spec(**options: Any) -> WorkerSpec:
    return WorkerSpec(worker_id="w", run_id="r", pool="p", token="t", adapter="a", **options)


@pytest.mark.parametrize(
    ("host", "own", "expected"),
    [
        (["app", "zip", "lib", "site", "late"], ["zip", "lib", "site", "package"], ["app", "zip", "lib", "site", "late", "package"]),
        (["app", "pp", "zip", "lib"], ["pp", "zip", "lib"], ["app", "pp", "zip", "lib"]),
        (["app", "zip", "lib"], ["from env", "zip", "lib"], ["app", "from env", "zip", "lib"]),
        (["app", "pp", "zip"], ["from env", "pp", "zip"], ["app", "from env", "pp", "zip"]),
        (["lib", "zip"], ["zip", "lib"], ["lib", "zip"]),
        (["app"], ["its zip", "its lib"], ["app", "its zip", "its lib"]),
        ([], ["zip"], ["zip"]),
        (["app", "app", "zip"], ["zip", "zip"], ["app", "zip"]),
    ],
)  # fmt: skip
def test_a_path_is_the_hosts_with_what_the_environment_adds(
    host: list[str], own: list[str], expected: list[str]
) -> None:
    assert joined(host, own) == expected


@pytest.mark.parametrize("executable", [None, ""])
def test_a_process_that_does_not_know_its_interpreter(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ConfigError, match=r"sys\.executable is .*python=") as caught:
        interpreter.own_interpreter()
    assert caught.value.details["key"] == "python"
    # Who has named one does not need it.
    assert interpreter.python_command("m", spec(python="/other/python"))[0] == "/other/python"


def test_a_frozen_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ConfigError, match=r"frozen.*python="):
        interpreter.python_command("m", spec())
    # What it was started with, and what it has unpacked, is nothing for another interpreter.
    assert spec().flags == ()
    monkeypatch.setattr(sys, "path", [os.path.join(sys.prefix, "unpacked"), "/srv/app"])
    assert interpreter.import_path(spec(python="/other/python")) == ["/srv/app"]


def test_warning_options_that_the_program_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Flags:
        dev_mode = True

        def __getattr__(self, name: str) -> object:
            return getattr(flags, name)

    flags = sys.flags
    monkeypatch.setattr(sys, "flags", Flags())
    monkeypatch.setattr(sys, "warnoptions", [])
    assert interpreter.interpreter_flags() == ()


def test_another_interpreter_gets_the_applications_places_and_not_these_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    libraries = [
        entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "lib-dynload") or ".zip" in entry
    ]
    assert libraries
    monkeypatch.setattr(sys, "path", ["/srv/app", *libraries, os.path.dirname(os.__file__), "/srv/more", 7, b"/bytes"])
    assert interpreter.import_path(spec(python="/other/python")) == ["/srv/app", "/srv/more"]
    assert interpreter.import_path(spec()) == ["/srv/app", *libraries, os.path.dirname(os.__file__), "/srv/more"]
