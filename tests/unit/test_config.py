"""Configuration: what is taken, what is refused, and how it says so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

import snakepit_trio as sp
from snakepit_trio import config as configuration


@pytest.mark.parametrize(
    ("options", "key", "expected"),
    [
        ({"size": 2.5}, "size", "an int"),
        ({"size": True}, "size", "an int"),
        ({"size": "4"}, "size", "an int"),
        ({"size": 0}, "size", "1 to"),
        ({"timeout": float("nan")}, "timeout", "a number"),
        ({"timeout": -1}, "timeout", "at least"),
        ({"profile": "fibre"}, "profile", "'process' or 'thread'"),
        ({"env": {"A": 1}}, "env", "text to text"),
        ({"adapter": "two words"}, "adapter", "package.module"),
        ({"name": "1st"}, "name", "a letter"),
        ({"heartbeat_while_busy": 1}, "heartbeat_while_busy", "true or false"),
    ],
)
def test_a_pools_options_are_strict(options: dict[str, Any], key: str, expected: str) -> None:
    with pytest.raises(sp.ConfigError) as caught:
        sp.PoolConfig(**{"adapter": "m", **options})
    assert caught.value.details["key"] == key
    assert expected in caught.value.message


def test_an_int_is_a_number_and_none_is_no_limit() -> None:
    config = sp.PoolConfig(
        adapter="m:C", timeout=5, max_queue=None, queue_timeout=None, startup_timeout=None, restart_limit=None
    )
    assert config.timeout == 5
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.size = 3  # type: ignore[misc]


def test_a_path_is_text_too(tmp_path: Path) -> None:
    pool = sp.PoolConfig(adapter="a", cwd=tmp_path, python=tmp_path / "python")
    assert (pool.cwd, pool.python) == (str(tmp_path), str(tmp_path / "python"))
    assert sp.RuntimeConfig(pools=[pool], state_dir=tmp_path).state_dir == str(tmp_path)
    tls = sp.TlsConfig(cert=tmp_path / "a", key=tmp_path / "b", ca=tmp_path / "c")
    assert (tls.cert, tls.key, tls.ca) == tuple(str(tmp_path / name) for name in "abc")
    assert sp.BridgeConfig(token_file=tmp_path / "token").token_file == str(tmp_path / "token")
    with pytest.raises(sp.ConfigError):
        sp.PoolConfig(adapter="a", cwd=3)  # type: ignore[arg-type]


def first(kind: Any) -> str:
    return str(attrs.fields(kind)[0].name)


@pytest.mark.parametrize(
    "kind",
    [
        sp.PoolConfig, sp.RuntimeConfig, sp.BridgeConfig, sp.MetricsConfig, sp.TlsConfig, sp.RetryConfig, sp.CircuitConfig,
        sp.LimitConfig, sp.HedgeConfig, sp.RayConfig,
    ],
)  # fmt: skip
def test_options_are_given_by_name(kind: Any) -> None:
    # So an option may be put before another one day.
    with pytest.raises(TypeError, match=f"^{kind.__name__} takes its options by name, such as"):
        kind("x")
    with pytest.raises(
        sp.ConfigError, match=f"^{first(kind)}x: not an option of {kind.__name__}; did you mean '{first(kind)}'"
    ):
        kind(**{f"{first(kind)}x": 1})


def test_a_runtime_needs_pools_with_different_names() -> None:
    with pytest.raises(sp.ConfigError, match="at least one"):
        sp.RuntimeConfig(pools=[])
    with pytest.raises(sp.ConfigError, match="different names"):
        sp.RuntimeConfig(pools=[sp.PoolConfig(adapter="m"), sp.PoolConfig(adapter="n")])


def test_a_profile_says_how_many_calls_a_worker_runs_at_once() -> None:
    assert sp.PoolConfig(adapter="m").threads == 1
    assert sp.PoolConfig(adapter="m", profile="thread").threads == 10
    assert sp.PoolConfig(adapter="m", profile="thread", threads=3).threads == 3
    assert sp.PoolConfig(adapter="m", threads=3).threads == 3


CLASSES = [kind for kind in vars(configuration).values() if isinstance(kind, type) and attrs.has(kind)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_option_is_described(kind: type) -> None:
    described = re.findall(r"^ {4}(\w+(?:, \w+)*): \S", inspect.getdoc(kind) or "", re.MULTILINE)
    names = [name for line in described for name in line.split(", ")]
    assert sorted(names) == sorted(field.name for field in attrs.fields(kind))


def test_every_option_is_read_somewhere() -> None:
    package = Path(sp.__file__).parent
    source = "\n".join(path.read_text() for path in package.rglob("*.py") if "generated" not in path.parts)
    read = set(
        re.findall(
            r"(?:config|settings|limits|metrics|options|self|circuit|retry|tls|hedge|spec|pool)\.(?=(\w+))", source
        )
    )
    assert {f"{kind.__name__}.{f.name}" for kind in CLASSES for f in attrs.fields(kind) if f.name not in read} == set()


def test_secrets_are_not_shown() -> None:
    assert "hush" not in repr(sp.BridgeConfig(token="hush"))
    assert "hush" not in repr(sp.PoolConfig(adapter="m", env={"PASSWORD": "hush"}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "snakepit.toml"
    path.write_text(
        'session_ttl = 5\n[[pools]]\nadapter = "m"\nsize = 2\n[[pools]]\nname = "gpu-a"\nadapter = "g:G"\n'
        '[bridge]\naddress = "unix:/tmp/x"\n'
    )
    return path


def test_a_file_and_the_environment_over_it(file: Path) -> None:
    config = sp.RuntimeConfig.load(
        file,
        environ={
            "SNAKEPIT_POOLS__DEFAULT__SIZE": "8",
            "SNAKEPIT_POOLS__GPU_A__TIMEOUT": "none",
            "SNAKEPIT_POOLS__GPU_A__HEARTBEAT_WHILE_BUSY": "false",
            "SNAKEPIT_BRIDGE__TOKEN": "hush",
            "SNAKEPIT_STATE_DIR": "/ignored",
            "SNAKEPIT_SESSION_TTL": "7.5",
        },
    )
    first, second = config.pools
    assert (first.size, second.timeout, second.heartbeat_while_busy) == (8, None, False)
    assert config.session_ttl == 7.5
    assert config.bridge is not None
    assert config.bridge.token == "hush"


def test_pyproject(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[[tool.snakepit.pools]]\nadapter = "m"\nsize = 3\n')
    assert sp.RuntimeConfig.load(path, environ={}).pools[0].size == 3


@pytest.mark.parametrize(
    ("text", "environ", "source", "key", "words"),
    [
        ('[[pools]]\nadapter = "m"\nsizes = 2\n', {}, "snakepit.toml", "pools[0].sizes", "did you mean 'size'"),
        ('[[pools]]\nadapter = "m"\nsize = "2"\n', {}, "snakepit.toml", "pools[0].size", "an int"),
        ('[[pools]]\nadapter = "m"\nsize = 2.5\n', {}, "snakepit.toml", "pools[0].size", "an int"),
        ('[[pools]]\nadapter = "m"\n', {"SNAKEPIT_POOLS__DEFAULT__SIZE": "2.5"}, "SNAKEPIT_POOLS__DEFAULT__SIZE", "size", "an int"),
        ('[[pools]]\nadapter = "m"\n', {"SNAKEPIT_POOLS__DEFAULT__SIZE": "0"}, "SNAKEPIT_POOLS__DEFAULT__SIZE", "pools[0].size", "1 to"),
        ('[[pools]]\nadapter = "m"\n', {"SNAKEPIT_POLS": "0"}, "SNAKEPIT_POLS", "pols", "did you mean 'pools'"),
        ("x =", {}, "snakepit.toml", "file", "valid TOML"),
        ("pools = [1]\n", {}, "snakepit.toml", "pools", "[[pools]] tables"),
        ('[[pools]]\nadapter = "m"\nlimits = [1]\n', {}, "snakepit.toml", "pools[0].limits", "[[limits]] tables"),
        ('[[pools]]\nadapter = "m"\nlimits = 1\n', {}, "snakepit.toml", "pools[0].limits", "[[limits]] tables"),
        ("pools = 1\n", {}, "snakepit.toml", "pools", "[[pools]] tables"),
        ('[pools]\nadapter = "m"\n', {}, "snakepit.toml", "pools", "[[pools]] tables"),
        ("", {}, "snakepit.toml", "pools", "at least one [[pools]] table"),
        ("max_sesions = 5\n", {}, "snakepit.toml", "max_sesions", "did you mean 'max_sessions'"),
        ('max_sessions = "5"\n', {}, "snakepit.toml", "max_sessions", "an int"),
        ('[bridge]\nadress = "unix:x"\n', {}, "snakepit.toml", "bridge.adress", "did you mean 'address'"),
        ('[[pools]]\nadapter = "m"\n', {"SNAKEPIT_POOLS__DEFUALT__SIZE": "2"}, "SNAKEPIT_POOLS__DEFUALT__SIZE", "pools[1].adapter", "a value"),
        ("[[pools]]\nsize = 1\n", {}, "snakepit.toml", "pools[0].adapter", "a value"),
        ('[[pools]]\nadapter = "m"\n[bridge]\nadress = "unix:x"\n', {}, "snakepit.toml", "bridge.adress", "did you mean 'address'"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, environ: dict[str, str], source: str, key: str, words: str) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text(text)
    with pytest.raises(sp.ConfigError) as caught:
        sp.RuntimeConfig.load(path, environ=environ)
    assert str(caught.value.details["source"]).endswith(source)
    assert caught.value.details["key"] == key
    assert words in caught.value.message
    assert source in caught.value.message


def test_entries_of_tables_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\nadapter = "m"\nlauncher = "ray"\nenv = { LEVEL = "info", KEPT = "1" }\n[pools.ray]\n')
    environ = {
        "SNAKEPIT_POOLS__DEFAULT__ENV__LEVEL": "debug",
        "SNAKEPIT_POOLS__DEFAULT__ENV__level": "none",
        "SNAKEPIT_POOLS__DEFAULT__ENV__A__B": "8",
        "SNAKEPIT_POOLS__DEFAULT__RAY__RESOURCES__num_gpus": "0.5",
    }
    (pool,) = sp.RuntimeConfig.load(path, environ=environ).pools
    assert pool.env == {"LEVEL": "debug", "KEPT": "1", "level": "none", "A__B": "8"}
    assert pool.ray is not None and pool.ray.resources == {"num_gpus": 0.5}
    # Beside the whole table, which goes before the file's.
    environ = {"SNAKEPIT_POOLS__DEFAULT__ENV": '{"A": "1"}', "SNAKEPIT_POOLS__DEFAULT__ENV__B": "2"}
    (pool,) = sp.RuntimeConfig.load(path, environ=environ).pools
    assert pool.env == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("variable", "value", "text", "words"),
    [
        ("ENV__", "v", "", "expected a name after it"),
        ("ENV__A", "v", "env = 3", "expected a table to add to, got 3"),
        ("RAY__RESOURCES__num_cpus", "many", "", "resources.num_cpus: expected a number, got 'many'"),
        ("RAY__RUNTIME_ENV__pip", "numpy", "", "expected SNAKEPIT_KEY"),
        ("SIZE__X", "3", "", "expected SNAKEPIT_KEY"),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, variable: str, value: str, text: str, words: str) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text(f'[[pools]]\nadapter = "m"\nlauncher = "ray"\n{text}\n[pools.ray]\n')
    with pytest.raises(sp.ConfigError) as caught:
        sp.RuntimeConfig.load(path, environ={f"SNAKEPIT_POOLS__DEFAULT__{variable}": value})
    assert words in caught.value.message
    assert variable in caught.value.message


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
@pytest.mark.parametrize("variable", ["ENV", "LIMITS", "RETRY__ON"])
def test_json_that_is_nested_too_deeply_names_its_variable(tmp_path: Path, variable: str, text: str) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\nadapter = "m"\n')
    with pytest.raises(sp.ConfigError, match=f"^SNAKEPIT_POOLS__DEFAULT__{variable}: .* nested too deeply"):
        sp.RuntimeConfig.load(path, environ={f"SNAKEPIT_POOLS__DEFAULT__{variable}": text})


def test_a_value_that_json_can_just_read_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\nadapter = "m"\n')
    for depth in range(800, 1000):
        with pytest.raises(sp.ConfigError, match="RETRY__ON"):
            sp.RuntimeConfig.load(
                path, environ={"SNAKEPIT_POOLS__DEFAULT__RETRY__ON": '{"a":' * depth + "1" + "}" * depth}
            )


def test_a_file_that_is_nested_too_deeply_is_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text("env = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(sp.ConfigError, match=r"snakepit.toml: file: .* nested too deeply"):
        sp.RuntimeConfig.load(path, environ={})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(sp.ConfigError, match="readable TOML file"):
        sp.RuntimeConfig.load(tmp_path / "none.toml", environ={})


NESTED = """
redact_patterns = ["acct-[0-9]+"]
[metrics]
max_tools = 3
[[pools]]
adapter = "m"
timeouts = "batch"
timeout = 5
[pools.retry]
attempts = 4
[[pools.limits]]
tools = ["render"]
concurrency = 2
[[pools.limits]]
per = "session"
rate = 0.5
"""


def test_nested_tables_and_their_variables(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text(NESTED)
    environ = {"SNAKEPIT_POOLS__DEFAULT__RETRY__DELAY": "0.5", "SNAKEPIT_METRICS__ADDRESS": "none"}
    config = sp.RuntimeConfig.load(path, environ=environ)
    (pool,) = config.pools
    assert pool.retry == sp.RetryConfig(attempts=4, delay=0.5)
    assert [limit.concurrency for limit in pool.limits] == [2, None]
    assert pool.limits[1].per == "session"
    assert (pool.timeout, pool.stream_timeout, pool.queue_timeout) == (5, None, None)
    assert config.metrics == sp.MetricsConfig(address=None, max_tools=3)
    assert config.redact_patterns == ("acct-[0-9]+",)
    assert "acct" not in repr(config)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[[pools]]\nadapter = "m"\n[pools.retry]\nattempts = 1', "pools[0].retry.attempts"),
        ('[[pools]]\nadapter = "m"\n[pools.retry]\nattempt = 3', "pools[0].retry.attempt"),
        ('[[pools]]\nadapter = "m"\nretry = 3', "pools[0].retry"),
        ('[[pools]]\nadapter = "m"\n[[pools.limits]]\ntools = ["x"]', "pools[0].limits[0].concurrency"),
        ('[[pools]]\nadapter = "m"\n[[pools.limits]]\nrate = 1\ntools = [1]', "pools[0].limits[0].tools"),
        ('[[pools]]\nadapter = "m"\n[pools.hedge]\ntools = []', "pools[0].hedge.delay"),
        ('[[pools]]\nadapter = "m"\ntimeouts = "soon"', "pools[0].timeouts"),
        ('redact_patterns = ["["]\n[[pools]]\nadapter = "m"', "redact_patterns"),
        ('metrics = 1\n[[pools]]\nadapter = "m"', "metrics"),
    ],
)
def test_a_bad_value_in_a_nested_table_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text(text)
    with pytest.raises(sp.ConfigError) as caught:
        sp.RuntimeConfig.load(path, environ={})
    assert caught.value.details["key"] == key
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({}, "adapter", "a value, or a command instead"),
        ({"adapter": "m", "command": ["node"]}, "command", "beside an adapter"),
        ({"command": []}, "command", "a program and its arguments"),
        ({"command": [""]}, "command", "a program"),
        ({"command": ["a\0"]}, "command", "without NUL"),
        ({"command": "node worker.js"}, "command", "a list of text"),
        ({"command": ["node", 3]}, "command", "a list of text"),
        ({"command": ["node"], "python": "python3.13"}, "python", "names its own"),
    ],
)
def test_a_command_or_an_adapter(options: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(sp.ConfigError, match=words) as refused:
        sp.PoolConfig(**options)
    assert refused.value.details["key"] == key


def test_a_command_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text('[[pools]]\ncommand = ["node", "worker.js"]\n')
    (pool,) = sp.RuntimeConfig.load(path, environ={}).pools
    assert pool.command == ("node", "worker.js") and pool.adapter is None
    (pool,) = sp.RuntimeConfig.load(path, environ={"SNAKEPIT_POOLS__DEFAULT__COMMAND": '["deno"]'}).pools
    assert pool.command == ("deno",)


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"ray": sp.RayConfig()}, "ray", "launcher='ray' beside it"),
        ({"launcher": "ray", "devices": ["cuda:0"]}, "devices", "by num_gpus"),
        ({"launcher": "ray", "transport": "unix"}, "transport", "'tcp'"),
        ({"launcher": "slurm"}, "launcher", "'local' or 'ray'"),
    ],
)
def test_what_does_not_go_with_ray(options: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(sp.ConfigError, match=words) as refused:
        sp.PoolConfig(adapter="m", **options)
    assert refused.value.details["key"] == key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resources": {"num_cpus": "1"}}, "a mapping of text to numbers"),
        ({"resources": {"num_cpus": True}}, "a mapping of text to numbers"),
        ({"resources": {"num_cpus": -1}}, "a number from 0"),
        ({"resources": {"num_cpus": float("inf")}}, "a number from 0"),
        ({"resources": {"CPU": 1}}, "num_cpus, num_gpus"),
        ({"resources": {"memory": 1.5}}, "whole bytes"),
        ({"resources": {}, "placement_group": "PACK"}, "resources to reserve"),
        ({"placement_group": "pack"}, "'PACK' or"),
        ({"address": "ray://head:10001"}, "not supported"),
        ({"runtime_env": "pip"}, "a mapping of text to anything"),
    ],
)
def test_what_ray_is_not_asked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(sp.ConfigError, match=words):
        sp.RayConfig(**options)


def test_ray_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "snakepit.toml"
    path.write_text(
        '[[pools]]\nadapter = "m"\nlauncher = "ray"\n'
        '[pools.ray]\naddress = "head:6379"\nruntime_env = { pip = ["numpy"] }\n'
        "[pools.ray.resources]\nnum_cpus = 1\nnum_gpus = 0.25\n"
    )
    (pool,) = sp.RuntimeConfig.load(path, environ={}).pools
    assert pool.ray == sp.RayConfig(
        address="head:6379", resources={"num_cpus": 1, "num_gpus": 0.25}, runtime_env={"pip": ["numpy"]}
    )
    environ = {"SNAKEPIT_POOLS__DEFAULT__RAY__RESOURCES": '{"num_cpus": 2}'}
    (pool,) = sp.RuntimeConfig.load(path, environ=environ).pools
    assert pool.ray is not None and pool.ray.resources == {"num_cpus": 2}
    path.write_text('[[pools]]\nadapter = "m"\nlauncher = "ray"\n[pools.ray]\nadress = "x"\n')
    with pytest.raises(sp.ConfigError, match=r"pools\[0\]\.ray\.adress: .*did you mean 'address'"):
        sp.RuntimeConfig.load(path, environ={})
    assert sp.PoolConfig(adapter="m", launcher="ray").ray == sp.RayConfig()


def test_one_process_has_one_ray_cluster() -> None:
    pools = [
        sp.PoolConfig(adapter="m", name=name, launcher="ray", ray=sp.RayConfig(address=f"{name}:1")) for name in "ab"
    ]
    with pytest.raises(sp.ConfigError, match="one Ray cluster"):
        sp.RuntimeConfig(pools=pools)


def test_each_configuration_is_in_the_reference() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    assert set(re.findall(r"config-reference:: (\w+)", page)) == set(configuration.__all__)


def test_a_name_in_a_variable_is_that_of_one_pool(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    tables = [f'[[pools]]\nname = "{name}"\nadapter = "m"\nsize = 1\n' for name in ("a-b", "a.b", "c")]
    path.write_text("".join(tables))
    with pytest.raises(sp.ConfigError, match=r"^SNAKEPIT_POOLS__A_B__SIZE: .*the name of one pool only"):
        sp.RuntimeConfig.load(path, environ={"SNAKEPIT_POOLS__A_B__SIZE": "2"})
    found = sp.RuntimeConfig.load(path, environ={"SNAKEPIT_POOLS__C__SIZE": "2"})
    assert [pool.size for pool in found.pools] == [1, 1, 2]


def test_a_key_that_is_not_known_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    for text, key in (
        ('sise = 1\n[[pools]]\nadapter = "m"\n', "sise"),
        ('[[pools]]\nadapter = "m"\nsise = 1\n', "pools[0].sise"),
    ):
        path.write_text(text)
        with pytest.raises(sp.ConfigError) as refused:
            sp.RuntimeConfig.load(path, environ={})
        assert refused.value.details["key"] == key and f": {key}: expected a key of " in str(refused.value)


@pytest.mark.parametrize("pools", [5, "x", ["x"], [None], [{"size": 1}]])
def test_pools_are_pools(pools: Any) -> None:
    for given in (pools, [sp.PoolConfig(adapter="a:b"), *pools] if isinstance(pools, list) else pools):
        with pytest.raises(sp.ConfigError) as caught:
            sp.RuntimeConfig(pools=given)
        assert caught.value.details["key"] == "pools" and "PoolConfig" in str(caught.value)
