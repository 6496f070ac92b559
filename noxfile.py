"""What there is to do: ``nox -l`` lists it. ``nox`` alone checks everything; ``nox -s tests`` runs the tests."""

from __future__ import annotations

import filecmp
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "protos", "events", "docs", "tests"]

PROJECT = nox.project.load_toml("pyproject.toml")
GENERATED = pathlib.Path("snakepit_trio/wire/generated")
BACKENDS = ["trio", "asyncio"]
# As many processes of tests as there are cores to run them; `-- -n 0` for none but pytest's own.
PARALLEL = ["-n", str(min(4, len(os.sched_getaffinity(0)))), "--dist", "load"]


def works(version: str) -> bool:
    """Whether this interpreter is here for real: a version manager's shim may be on the path and not work."""
    found = shutil.which(f"python{version}")
    if found is None:
        return False
    try:
        return subprocess.run([found, "-c", ""], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


PYTHONS = [version for version in ("3.11", "3.12", "3.13") if works(version)] or [None]


def group(*names: str) -> list[str]:
    """The requirements of dependency groups."""
    return list(nox.project.dependency_groups(PROJECT, *names))


def check(session: nox.Session) -> None:
    """Style, types, and the direction of imports."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("mypy", "tests/typing")
    session.run("lint-imports", env={"PYTHONPATH": os.getcwd()})


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on each interpreter that is here and on both event loops; ``-- --backend trio`` for one."""
    session.install(".[numpy,mcp]", *group("test", "protos", "clients", "redis", "tables", "examples"))
    session.run("pytest", *PARALLEL, "--durations", "15", *session.posargs)


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Lint, and every test that needs no process, with 60 seeds of the simulator and fewer examples than ``tests`` has."""
    session.install("-e", ".[numpy,mcp]", *group("lint", "tables"))
    check(session)
    session.run(
        "pytest", *PARALLEL, "tests/unit", "tests/property", "tests/simulation", *session.posargs,
        env={"SNAKEPIT_TEST_SEEDS": "60", "HYPOTHESIS_PROFILE": "quick"},
    )  # fmt: skip


@nox.session
def mutations(session: nox.Session) -> None:
    """Sixty small breakages of the package, one at a time in a copy of it: do the tests notice? An hour or more; ``-- --seed 2``
    for others."""
    session.install(".[numpy,mcp]", *group("test", "protos", "clients", "redis", "tables"))
    session.run("python", "-m", "tests.mutation", "--named")
    session.run("python", "-m", "tests.mutation", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that the package allows."""
    lower = [req.split(";")[0].split(",")[0].replace(">=", "==") for req in PROJECT["project"]["dependencies"]]
    session.install(*lower, *group("test"))
    session.install("--no-deps", ".")
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session(python=PYTHONS[-1:])
def newest(session: nox.Session) -> None:
    """The tests with the newest release of everything that is depended on, beyond the upper bounds, too."""
    # The generated messages are for one minor release of theirs.
    pinned = ("betterproto2",)
    needed = [
        req if req.startswith(pinned) else re.split(r"[<>=!~; ]", req)[0] for req in PROJECT["project"]["dependencies"]
    ]
    session.install("--upgrade", *needed, *group("test"))
    session.install("--no-deps", ".")
    session.run("pytest", *PARALLEL, *session.posargs)


@nox.session(python=PYTHONS[-1:])
def portable(session: nox.Session) -> None:
    """The tests in the platform seam's portable form, on Linux, on both event loops. What only Linux can do is skipped."""
    session.install(".[numpy,mcp]", *group("test", "protos", "clients", "redis", "tables"))
    session.run("pytest", *PARALLEL, *session.posargs, env={"SNAKEPIT_PORTABLE": "1"})


@nox.session
@nox.parametrize("backend", BACKENDS)
def ray(session: nox.Session, backend: str) -> None:
    """Workers on Ray clusters of up to three nodes on this machine; many minutes, so it is not part of the others."""
    session.install(".[numpy,ray]", *group("test", "redis"))
    files = ["tests/integration/test_ray.py", "tests/integration/test_ray_cluster.py"]
    session.run("pytest", *files, "--backend", backend, *session.posargs)


@nox.session
@nox.parametrize("backend", BACKENDS)
def netns(session: nox.Session, backend: str) -> None:
    """Workers in network namespaces of this machine: lost packets, cut links, TLS on the wire. Needs root, ip and nft."""
    session.install(".", *group("test"))
    session.run(
        "pytest", "tests/netns", "--backend", backend, *session.posargs, env={"SNAKEPIT_TEST_NETNS": "1"}
    )  # fmt: skip


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types, and the direction of imports."""
    session.install(".[numpy,mcp]", *group("lint"))
    check(session)


@nox.session(name="types")
def verify_types(session: nox.Session) -> None:
    """Does pyright read the interface as mypy does, and are the types of the public modules complete? It brings its own node."""
    session.install(".", *group("lint"), "pyright>=1.1.390")
    session.run("pyright", "tests/typing/api.py")
    session.run("python", "-m", "tests.typing.completeness")


@nox.session
def protos(session: nox.Session) -> None:
    """Generate the messages anew and compare; with ``-- --write`` put them in place."""
    session.install("betterproto2[grpclib]>=0.10,<0.11", *group("protos"))
    with tempfile.TemporaryDirectory() as name:
        out = pathlib.Path(name)
        session.run(
            "python", "-m", "grpc_tools.protoc", "-I", "protos", f"--python_betterproto2_out={out}",
            "--python_betterproto2_opt=client_generation=async", "--python_betterproto2_opt=server_generation=async",
            f"--descriptor_set_out={out}/descriptors.bin", "--include_imports",
            *map(str, sorted(pathlib.Path("protos").rglob("*.proto"))),
        )  # fmt: skip
        if "--write" in session.posargs:
            shutil.copytree(out, GENERATED, dirs_exist_ok=True)
            return
        made = sorted(path.relative_to(out) for path in out.rglob("*.*"))
        kept = sorted(path.relative_to(GENERATED) for path in GENERATED.rglob("*.*") if path.suffix != ".pyc")
        differing = [str(p) for p in made if p not in kept or not filecmp.cmp(out / p, GENERATED / p, shallow=False)]
        if differing or made != kept:
            session.error(f"{GENERATED} is not what protos/ gives: {differing or 'files are missing or too many'}")


@nox.session
def events(session: nox.Session) -> None:
    """Make docs/events.md anew and compare; with ``-- --write`` put it in place."""
    session.install(".")
    made = session.run("python", "-m", "snakepit_trio.observe.catalogue", silent=True)
    kept = pathlib.Path("docs/events.md")
    if "--write" in session.posargs:
        kept.write_text(made)
    elif kept.read_text() != made:
        session.error(f"{kept} is not what the catalogue gives; nox -s events -- --write")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks of docs/benchmarks.md beside their peers, their records and plots: under 5 minutes, on a quiet machine.

    Ray takes part when ``-- ray`` is given.
    """
    session.install(".[ray]" if "ray" in session.posargs else ".", *group("bench"))
    results = "benchmarks/results"
    session.run("python", "benchmarks/calls.py", "--rounds", "5", "--json", f"{results}/calls.json")
    session.run("python", "benchmarks/sweeps.py", "--rounds", "3", "--json", f"{results}/sweeps.json")
    session.run("python", "benchmarks/host_profile.py")
    session.run("python", "benchmarks/cancel.py", "--json", f"{results}/cancel.json")
    session.run("python", "benchmarks/arrays.py", "--mib", "1,10", "--json", f"{results}/arrays.json")
    session.run("python", "benchmarks/queue_cost.py", "--json", f"{results}/queue_cost.json")
    session.run("python", "benchmarks/sessions.py")
    session.run("python", "benchmarks/plots.py")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, into docs/_build; needs no network."""
    session.install(".", *group("docs"))
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)


@nox.session
@nox.parametrize("backend", BACKENDS)
def soak(session: nox.Session, backend: str) -> None:
    """Property tests and the decoder's fuzzer at length, an exception in each function, deaths at each step, abuses, a million
    calls while everything is broken."""
    session.install(".", *group("test", "protos", "bench"))
    session.run(
        "pytest", "tests/property", "--backend", backend, "--timeout", "3600", *session.posargs,
        env={"HYPOTHESIS_PROFILE": "soak"},
    )  # fmt: skip
    if backend == "trio":
        session.run(
            "pytest", "tests/simulation/test_simulator.py", "--backend", backend, "--timeout", "3600",
            env={"SNAKEPIT_TEST_SEEDS": "10000"},
        )  # fmt: skip
        session.run(
            "pytest", "tests/simulation/test_injection.py", "--backend", backend, "--timeout", "3600",
            env={"SNAKEPIT_TEST_INJECTION": "all"},
        )  # fmt: skip
        session.run(
            "pytest",
            "tests/simulation/test_interrupts.py",
            "--timeout",
            "3600",
            env={"SNAKEPIT_TEST_INTERRUPTS": "1000"},
        )
    for side in ("host", "worker", "template", "client"):
        session.run("python", "-m", "tests.injection", "--side", side, "--backend", backend)
    for phase in ("opening", "closing"):
        session.run("python", "-m", "tests.injection", "--phase", phase, "--backend", backend, "--entries", "1")
    if backend == BACKENDS[0] and session.python in (None, "3.11"):
        # Its last wheels are for 3.11.
        session.install("atheris>=2.3")
        session.run(
            "python", "tests/fuzz/decoder.py", "-max_total_time=600", "-rss_limit_mb=512", "-timeout=10",
            f"{session.create_tmp()}/corpus",
        )  # fmt: skip
    session.run("pytest", "tests/chaos", "--backend", backend, "--timeout", "3600", env={"SNAKEPIT_CHAOS_STEPS": "10"})
    load = "tests/integration/test_bridge_load.py"
    session.run("pytest", load, "--backend", backend, "--timeout", "3600", env={"SNAKEPIT_BRIDGE_ROUNDS": "50"})
    session.run("python", "benchmarks/abuse.py", "--backend", backend)
    record = f"benchmarks/results/soak-{backend}.json"
    session.run("python", "benchmarks/soak.py", "--backend", backend, "--json", record)
