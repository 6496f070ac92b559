"""Launchers that come from outside of the package: as objects, as what makes one, and by the name of an entry point."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import snakepit_trio as sp
from snakepit_trio.launch import choice
from snakepit_trio.launch.registered import GROUP
from snakepit_trio.launchers import LaunchContext, Launcher
from tests.documents import ROOT

RUN: Any = SimpleNamespace(run_id="r", run_dir=Path("/nowhere"))

Install = Callable[..., None]


class Own(Launcher):
    """Starts nothing."""

    def __init__(self, context: LaunchContext | None = None) -> None:
        self.context = context

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def start(self, spec: Any) -> Any:
        raise AssertionError


class Unrelated:
    """A launcher by its members alone."""

    same_machine = False

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def start(self, spec: Any) -> Any:
        raise AssertionError


def chosen(launcher: Any, **options: Any) -> Any:
    return choice.launcher_for(sp.PoolConfig(adapter="m", launcher=launcher, **options), RUN, str)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution on the path, with a module of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(distribution: str, entries: str, **modules: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    return put


def test_an_object_is_the_launcher() -> None:
    for own in (Own(), Unrelated()):
        assert chosen(own) is own


def test_what_makes_one_is_called_with_what_a_launcher_may_know() -> None:
    for made in (chosen(Own, size=3, spares=2), chosen(lambda context: Own(context), size=3, spares=2)):
        context = made.context
        assert (context.config.size, context.most_workers, context.run_id) == (3, 6, "r")
        assert (context.run_dir, context.book, context.redact) == (RUN.run_dir, RUN, str)


class NoStart:
    same_machine = True

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc: object) -> None: ...


class Vague(Unrelated):
    same_machine: Any = "yes"


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        (NoStart(), r"this lacks start\(\), got <"),
        (NoStart, r"this lacks start\(\), got <class"),
        (Vague(), r"this lacks same_machine \(True or False\)"),
        (object(), r"lacks __aenter__\(\), __aexit__\(\), start\(\), same_machine"),
        (3, "a name, or a Launcher"),
        (None, "a name, or a Launcher"),
        (Unrelated, "with a LaunchContext alone"),
        (lambda: Own(), "with a LaunchContext alone"),
    ],
)
def test_an_object_that_is_none_is_refused_with_what_it_lacks(launcher: Any, words: str) -> None:
    with pytest.raises(sp.ConfigError, match=words) as refused:
        sp.PoolConfig(adapter="m", launcher=launcher)
    assert refused.value.details["key"] == "launcher"


def test_what_makes_something_else_is_refused_when_the_pool_opens() -> None:
    with pytest.raises(sp.ConfigError, match=r"has made lacks __aenter__\(\), __aexit__\(\), start\(\)"):
        chosen(lambda context: object())


def test_what_does_not_go_with_a_launcher() -> None:
    with pytest.raises(sp.ConfigError, match="only launcher='local' starts commands"):
        sp.PoolConfig(command=["program"], launcher=Own())
    with pytest.raises(sp.ConfigError, match="the launcher's workers may be on other machines"):
        chosen(Unrelated(), transport="unix")
    own = Own()
    pools = [sp.PoolConfig(name=name, adapter="m", launcher=own) for name in "ab"]
    with pytest.raises(sp.ConfigError, match="a launcher of its own for each pool"):
        sp.RuntimeConfig(pools=pools)
    sp.RuntimeConfig(pools=[sp.PoolConfig(name=name, adapter="m", launcher=Own) for name in "ab"])


def test_a_distribution_brings_a_launcher_by_name(install: Install, tmp_path: Path) -> None:
    install(
        "snakepit-slurm",
        "slurm = slurm_launcher:Slurm",
        slurm_launcher="from tests.unit.test_registered_launchers import Own\nclass Slurm(Own): ...\n",
    )
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\nadapter = "m"\nlauncher = "slurm"\n')
    (config,) = sp.RuntimeConfig.load(path, environ={}).pools
    # Made with the configuration, loaded when the pool opens.
    assert "slurm_launcher" not in sys.modules
    made: Any = choice.launcher_for(config, RUN, str)
    assert type(made).__name__ == "Slurm" and made.context.config is config
    path.write_text('[[pools]]\nadapter = "m"\n')
    (config,) = sp.RuntimeConfig.load(path, environ={"SNAKEPIT_POOLS__DEFAULT__LAUNCHER": "slurm"}).pools
    assert config.launcher == "slurm"


def test_a_name_that_nobody_has_registered(install: Install, tmp_path: Path) -> None:
    install("snakepit-slurm", "slurm = slurm_launcher:Slurm\nlocal = slurm_launcher:Never")
    words = r"expected 'local' or 'ray' or 'slurm' \(did you mean 'slurm'\?\), got 'slrum'"
    with pytest.raises(sp.ConfigError, match=words):
        sp.PoolConfig(adapter="m", launcher="slrum")
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\nadapter = "m"\nlauncher = "slrum"\n')
    with pytest.raises(sp.ConfigError, match=words) as refused:
        sp.RuntimeConfig.load(path, environ={})
    assert refused.value.details["source"] == str(path) and refused.value.details["key"] == "pools[0].launcher"
    # Nobody takes the built-in one's place.
    assert type(chosen("local", start_method="spawn")).__name__ == "SpawnLauncher"


@pytest.mark.parametrize(
    ("entry", "module", "words"),
    [
        ("absent_module:Own", "", r"'far' of snakepit-far 1\.2 to be importable \(absent_module:Own\): ModuleNotFoundError: .*absent_module"),
        ("far_module:Missing", "", r"'far' of snakepit-far 1\.2 .*AttributeError: .*Missing"),
        ("far_module:x", "raise ValueError('no licence')", r"'far' of snakepit-far 1\.2 .*ValueError: no licence"),
        ("far_module:x", "import sys; sys.exit('no')", r"'far' of snakepit-far 1\.2 .*SystemExit: no"),
        ("far_module:x", "x = 3", r"'far' of snakepit-far 1\.2 to be a class or a function: far_module:x is of type int"),
        ("far_module:x", "def x(): ...", r"'far' of snakepit-far 1\.2 to make a launcher: TypeError"),
        ("far_module:x", "def x(context): ...", "what it has made lacks"),
        ("far_module:x [big]", "import absent_module", r"expected snakepit-far\[big\] to be installed: .*absent_module"),
    ],
)  # fmt: skip
def test_an_entry_point_that_does_not_load(entry: str, module: str, words: str, install: Install) -> None:
    install("snakepit-far", f"far = {entry}", far_module=module)
    with pytest.raises(sp.ConfigError, match=words) as refused:
        chosen("far")
    assert refused.value.details["key"] == "launcher"


def test_what_a_launcher_says_of_its_configuration_stays_as_it_is(install: Install) -> None:
    text = "import snakepit_trio as sp\ndef make(context):\n    raise sp.ConfigError('no partition')\n"
    install("snakepit-far", "far = far_module:make", far_module=text)
    with pytest.raises(sp.ConfigError, match=r"^no partition$"):
        chosen("far")


def test_a_name_that_two_distributions_have_registered(install: Install) -> None:
    install("snakepit-one", "far = far_module:make")
    install("snakepit-two", "far = far_module:make")
    with pytest.raises(sp.ConfigError, match=r"not snakepit-one 1\.2 and snakepit-two 1\.2, got 'far'"):
        sp.PoolConfig(adapter="m", launcher="far")


def test_ray_is_one_of_them() -> None:
    pytest.importorskip("ray")
    pytest.importorskip("cryptography")
    registered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    factory = EntryPoint("ray", registered["ray"], GROUP).load()
    context = LaunchContext(
        config=sp.PoolConfig(adapter="m", launcher="ray"),
        run_id="r", run_dir=RUN.run_dir, book=RUN, most_workers=1, redact=str,
    )  # fmt: skip
    assert factory(context).same_machine is False


def test_the_module_has_what_it_lists() -> None:
    from snakepit_trio import launchers

    for name in set(launchers.__all__) - {"Authority"}:
        assert getattr(launchers, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        launchers.nothing  # noqa: B018
    pytest.importorskip("cryptography")
    assert launchers.Authority.__name__ == "Authority"
