"""Hosts as programs of their own: how they are started, from where, and what their workers make of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Tells how it was started itself, then what a forked and a spawned worker say of themselves.
HOST = """
import json, sys
sys.path[:0] = {path!r}
import anyio
import snakepit_trio as sp
import told

async def main():
    pools = [sp.PoolConfig(name=method, adapter="told", size=1, start_method=method) for method in ("fork_server", "spawn")]
    async with sp.open_runtime(sp.RuntimeConfig(pools=pools)) as runtime:
        for name in runtime.pools:
            print(json.dumps(await runtime.pool(name).execute("tell")), flush=True)

print(json.dumps(told.tell()))
anyio.run(main, backend="trio")
"""
ADAPTER = """
import os, sys
import snakepit_trio as sp

@sp.tool
def tell() -> dict:
    flags = {name: getattr(sys.flags, name) for name in ("optimize", "isolated", "ignore_environment", "utf8_mode", "dev_mode")}
    path = [ascii(os.path.abspath(place)) for place in sys.path]
    return {**flags, "warnings": sys.warnoptions, "path": path, "package": ascii(sp.__file__), "module": ascii(__file__)}
"""


def run(*command: Path | str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a host to its end; the tests' own path is not in its environment."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env={**inherited, **environment}, check=False, timeout=60,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="surrogateescape",
    )  # fmt: skip


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A program in a directory of its own, next to its adapter."""
    place = tmp_path / "application"
    place.mkdir()
    (place / "host.py").write_text(HOST.format(path=[str(ROOT)]))
    (place / "told.py").write_text(ADAPTER)
    return place / "host.py"


@pytest.mark.parametrize(
    "flags", [["-O", "-X", "utf8", "-W", "error::FutureWarning"], ["-OO", "-E", "-X", "dev"], ["-I"]], ids=" ".join
)
def test_workers_run_under_their_hosts_flags_and_find_what_it_finds(flags: list[str], application: Path) -> None:
    if "-I" in flags:
        # The program's own directory is not searched, so it says itself where its modules are.
        application.write_text(HOST.format(path=[str(application.parent), str(ROOT)]))
    ran = run(*flags, application, cwd=application.parent)
    assert ran.returncode == 0, ran.stderr
    host, *workers = map(json.loads, ran.stdout.splitlines())
    assert workers == [host, host]


def test_what_lies_in_the_working_directory_is_not_imported(application: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("random", "msgspec", "told", "snakepit_trio", "sitecustomize"):
        (elsewhere / f"{name}.py").write_text(f"open({str(elsewhere / 'imported')!r}, 'a').write({name!r})\n1 / 0\n")
    ran = run(application, cwd=elsewhere)
    assert ran.returncode == 0, ran.stderr
    assert not (elsewhere / "imported").exists()
    host, *workers = map(json.loads, ran.stdout.splitlines())
    assert workers == [host, host]


def test_an_adapter_in_the_directory_that_python_minus_m_searches(application: Path, tmp_path: Path) -> None:
    """There the working directory is the host's first place, and so the workers'."""
    ran = run("-m", "host", cwd=application.parent)
    assert ran.returncode == 0, ran.stderr
    host, *workers = map(json.loads, ran.stdout.splitlines())
    assert workers == [host, host]
    assert ascii(str(application.parent)) in host["path"]


FROZEN = """
import sys
sys.path[:0] = {path!r}
import anyio
import snakepit_trio as sp

python, sys.executable, sys.frozen = sys.executable, "/the/application", True

async def main():
    for option in (None, python):
        for name in ("told", "none:Such"):
            try:
                async with sp.open_pool(name, size=1, python=option) as pool:
                    print(len(await pool.execute("tell")))
            except sp.SnakepitError as exc:
                print(type(exc).__name__, exc.details.get("key", ""))
    async with sp.open_pool(command=[python, "-c", "print('unix:/nowhere')"], size=1, startup_timeout=5):
        pass

anyio.run(main, backend="trio")
"""


def test_a_frozen_application_has_workers_in_the_interpreter_that_it_names(application: Path) -> None:
    application.write_text(FROZEN.format(path=[str(ROOT)]))
    ran = run(application, cwd=application.parent)
    assert ran.stdout.splitlines() == ["ConfigError python"] * 2 + ["9", "WorkerStartupError "], ran.stderr
    # A command names its program itself; this one serves nothing.
    assert "WorkerStartupError" in ran.stderr.splitlines()[-1]


def test_paths_that_are_no_text(application: Path, tmp_path: Path) -> None:
    """The adapter's, the working directory, the package's own, the state directory, the one for temporary files."""
    odd = os.path.join(os.fsencode(tmp_path), b"not \xff utf-8")
    os.mkdir(odd)
    odd_path = Path(os.fsdecode(odd))
    place = application.parent.rename(odd_path / "application")
    (odd_path / "package").symlink_to(ROOT)
    (place / "host.py").write_text(HOST.format(path=[str(odd_path / "package")]))
    broken = "class Broken(sp.Adapter):\n    def setup(self): raise RuntimeError(__file__)\n    @sp.tool\n    def say(self): ...\n"
    (place / "told.py").write_text(ADAPTER + broken)
    (odd_path / "tmp").mkdir()
    ran = run(place / "host.py", cwd=odd_path, TMPDIR=str(odd_path / "tmp"), SNAKEPIT_STATE_DIR=str(odd_path / "state"))
    assert ran.returncode == 0, ran.stderr
    host, *workers = map(json.loads, ran.stdout.splitlines())
    assert workers == [host, host]
    assert host["module"] == ascii(str(place / "told.py"))
    # What goes wrong there is told, with its name.
    (place / "host.py").write_text(HOST.format(path=[str(ROOT)]).replace('adapter="told"', 'adapter="told:Broken"'))
    ran = run(place / "host.py", cwd=odd_path)
    assert ran.stderr.splitlines()[-1].startswith("snakepit_trio.errors.WorkerStartupError")
    assert "not \\udcff utf-8/application/told.py" in ran.stderr.splitlines()[-1]


WITHOUT_STREAMS = """
import os, sys
for fd in (0, 1, 2):
    os.close(fd)
sys.stdin, sys.stdout, sys.stderr = {streams}
sys.path[:0] = {path!r}
import snakepit_trio as sp

async def main(runtime):
    for name in runtime.pools:
        open({out!r}, "a").write(str(len(await runtime.pool(name).execute("tell"))) + " ")
        try:
            await runtime.pool(name).execute("nothing")
        except sp.ToolNotFound:
            pass
    return {returned}

pools = [sp.PoolConfig(name=method, adapter="told", size=1, start_method=method) for method in ("fork_server", "spawn")]
code = sp.run(main, sp.RuntimeConfig(pools=pools), backend={backend!r})
open({out!r}, "a").write(f"code={{code}}")
"""


@pytest.mark.parametrize(
    ("streams", "backend", "returned", "code"),
    [
        ("None, None, None", "trio", "1 / 0", 1),
        ("__import__('io').StringIO(), *map(__import__('io').StringIO, 'ab')", "asyncio", "7", 7),
    ],
    ids=["none", "without a file"],
)
def test_a_host_without_standard_streams(
    streams: str, backend: str, returned: str, code: int, application: Path, tmp_path: Path
) -> None:
    """As pythonw and some services are: the numbers 0 to 2 are the next files', and nothing that is printed arrives."""
    out = tmp_path / "out"
    application.write_text(
        WITHOUT_STREAMS.format(streams=streams, path=[str(ROOT)], out=str(out), returned=returned, backend=backend)
    )
    run(application, cwd=tmp_path)
    assert out.read_text() == f"9 9 code={code}"
