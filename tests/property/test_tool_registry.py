"""The registry of host tools against a dictionary."""

from __future__ import annotations

import functools
import random
import string
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import snakepit_trio as sp
from snakepit_trio.tools.registry import ToolRegistry

#: Two of them differ by case.
NAMES = ["a", "b", "B", "Tool.c", "d-1", "x" * 64]
WRONG: list[Any] = [
    "", "1a", "a b", "snakepit.x", "SnakePit.x", "x" * 65, "x" * 5000, "a\n", "a\0", "\0", None, 5, b"a", "\u00e9", "e\u0301",
    "a\ud800", "\u212a", "a" + chr(0x660), 10**400,
]  # fmt: skip
GOOD = st.sampled_from(NAMES)
BAD = st.sampled_from(WRONG)


def make(number: int) -> Any:
    def function(value: int = number) -> int:
        return value

    return function


class RegistryMachine(RuleBasedStateMachine):
    """What is refused changes nothing; a critical tool stays; a batch is all or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = ToolRegistry()
        self.model: dict[str, tuple[Any, bool]] = {}

    @rule(name=GOOD, critical=st.booleans(), replace=st.booleans(), number=st.integers(0, 9))
    def register(self, name: str, critical: bool, replace: bool, number: int) -> None:
        function = make(number)
        there = self.model.get(name)
        if there is not None and (there[1] or not replace):
            with pytest.raises(sp.ToolExists) as raised:
                self.registry.register(name, function, critical=critical, replace=replace)
            assert raised.value.details["tool"] == name
        else:
            self.registry.register(name, function, critical=critical, replace=replace)
            self.model[name] = function, critical

    @rule(names=st.lists(GOOD | BAD, max_size=4, unique=True), replace=st.booleans())
    def register_many(self, names: list[Any], replace: bool) -> None:
        batch = {name: make(1) for name in names}
        good = all(name in NAMES for name in names)
        free = all(n not in self.model or (replace and not self.model[n][1]) for n in names)
        if good and free:
            self.registry.register_many(batch, replace=replace)
            self.model.update({name: (function, False) for name, function in batch.items()})
        else:
            with pytest.raises((sp.ToolExists, sp.InvalidParameter)):
                self.registry.register_many(batch, replace=replace)

    @rule(name=GOOD)
    def unregister(self, name: str) -> None:
        there = self.model.get(name)
        if there is None:
            with pytest.raises(sp.ToolNotFound):
                self.registry.unregister(name)
        elif there[1]:
            with pytest.raises(sp.ToolExists):
                self.registry.unregister(name)
        else:
            self.registry.unregister(name)
            del self.model[name]

    @rule(name=BAD)
    def bad_name(self, name: Any) -> None:
        with pytest.raises(sp.InvalidParameter):
            self.registry.register(name, make(1), replace=True)

    @invariant()
    def same(self) -> None:
        assert [tool.name for tool in self.registry.list()] == sorted(self.model)
        assert len(self.registry) == len(self.model)
        for name, (function, critical) in self.model.items():
            tool = self.registry.get(name)
            assert tool.critical is critical
            assert tool.tool.function is function


TestRegistry = RegistryMachine.TestCase


def test_what_is_refused() -> None:
    registry = ToolRegistry()

    def takes_context(ctx: sp.ToolContext) -> None: ...
    def takes_any(*values: int) -> None: ...
    def streams() -> Any:
        yield 1

    for function in (takes_context, takes_any, streams, "text", None):
        with pytest.raises(sp.InvalidParameter) as raised:
            registry.register("tool", function)  # type: ignore[arg-type]
        assert raised.value.details["path"] == "function"
    for metadata in ({"k": 1}, {1: "v"}, {"k": "v" * 9000}, {str(n): "" for n in range(65)}, "text", ["k"]):
        with pytest.raises(sp.InvalidParameter) as raised:
            registry.register("tool", make(1), metadata=metadata)  # type: ignore[arg-type]
        assert raised.value.details["path"].startswith("metadata")
    for description in ("d" * 9000, 5):
        with pytest.raises(sp.InvalidParameter) as raised:
            registry.register("tool", make(1), description=description)  # type: ignore[arg-type]
        assert raised.value.details["path"] == "description"
    with pytest.raises(sp.InvalidParameter) as raised:
        registry.register("tool", make(1), critical="no")  # type: ignore[arg-type]
    assert raised.value.details["path"] == "critical"
    with pytest.raises(sp.InvalidParameter):
        registry.register_many(["a"])  # type: ignore[arg-type]
    assert len(registry) == 0


def test_what_a_tool_says_of_itself() -> None:
    registry = ToolRegistry()
    metadata = {"owner": "me"}

    @registry.host_tool
    def plain(a: int, b: str = "x") -> None:
        """First paragraph,
        of two lines.

        Second.
        """

    @registry.host_tool(name="other", description="Given.", metadata=metadata, critical=True)
    async def function() -> None: ...

    metadata["owner"] = "changed"
    found, given = registry.get("plain"), registry.get("other")
    assert found.description == "First paragraph, of two lines."
    assert '"a"' in found.parameters_schema
    assert given.description == "Given."
    assert given.metadata == {"owner": "me"}
    with pytest.raises(TypeError):
        given.metadata["owner"] = "no"  # type: ignore[index]
    registry.register("partial", functools.partial(plain, b="y"))
    assert [tool.name for tool in registry] == ["other", "partial", "plain"]


@given(st.text(alphabet=string.ascii_letters + string.digits + "_.-", min_size=1, max_size=70))
def test_names(name: str) -> None:
    registry = ToolRegistry()
    good = name[0].isalpha() and len(name) <= 64 and not name.lower().startswith("snakepit.")
    if good:
        assert registry.register(name, make(1)).name == name
    else:
        with pytest.raises(sp.InvalidParameter):
            registry.register(name, make(1))


def test_a_full_registry_replaces_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snakepit_trio.tools.registry._MOST_TOOLS", 100)
    registry = ToolRegistry()
    for number in range(100):
        registry.register(f"t{number}", make(number))
    for refused in (lambda: registry.register("more", make(0)), lambda: registry.register_many({"more": make(0)})):
        with pytest.raises(sp.InvalidParameter, match="at most"):
            refused()
    with pytest.raises(sp.ToolExists):
        registry.register("t0", make(0))
    registry.register("t0", make(-1), replace=True)
    registry.register_many({"t1": make(-2)}, replace=True)
    assert [registry.get(name).tool.function() for name in ("t0", "t1", "t2")] == [-1, -2, 2]
    assert len(registry) == 100


def test_the_machine_meets_every_end() -> None:
    met: Counter[str] = Counter()
    for seed in range(15):
        rng, machine = random.Random(seed), RegistryMachine()
        for _ in range(60):
            step = rng.choice(["register", "register", "register_many", "unregister", "bad_name"])
            name, before = rng.choice(NAMES), dict(machine.model)
            if step == "register":
                machine.register(name, rng.random() < 0.2, rng.random() < 0.4, rng.randrange(10))
            elif step == "register_many":
                names = rng.sample([*NAMES, *([rng.choice(WRONG)] if rng.random() < 0.2 else [])], rng.randint(0, 2))
                machine.register_many(names, rng.random() < 0.7)
            elif step == "unregister":
                machine.unregister(name)
            else:
                machine.bad_name(rng.choice(WRONG))
            kept = machine.model == before
            met[f"{step}: {'refused' if kept else 'replaced' if len(before) == len(machine.model) else 'done'}"] += 1
            machine.same()
    for what in (
        "register: done", "register: refused", "register: replaced", "register_many: done", "register_many: refused",
        "register_many: replaced", "unregister: done", "unregister: refused", "bad_name: refused",
    ):  # fmt: skip
        assert met[what] >= 5, met
