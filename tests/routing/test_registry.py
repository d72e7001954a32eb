"""Finding routers by decorator, entry point and file."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from modbench.cli.options import parsed_options
from modbench.errors import UserError
from modbench.routing import registry
from modbench.routing.registry import (
    build_router,
    load_plugin,
    router_class,
    router_names,
)

BUILT_IN = [n for n, module in registry.installed_modules().items() if module.startswith("modbench.")]
PLUGIN = """
from dataclasses import dataclass, fields
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    strength: float = 1.0
    def build_layer(self, model, layer):
        return Block(model, layer)
"""


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.installed_modules():  # imported once in a process, registered once
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))


def plugin(folder: Path, text: str, file: str = "mine.py") -> Path:
    path = folder / file
    path.write_text(text)
    return path


def test_a_plugin_file_registers_its_router_once(tmp_path: Path) -> None:
    path = plugin(tmp_path, PLUGIN.format(name="mine_once"))
    assert load_plugin(path) == ["mine_once"]
    assert load_plugin(path) == ["mine_once"]
    assert build_router("mine_once", {"strength": 2}).options() == {"strength": 2.0}
    assert registry.plugin_sha256("mine_once") is not None
    assert registry.plugin_sha256("vanilla") is None


def test_a_plugin_that_raises_leaves_nothing_registered(tmp_path: Path) -> None:
    path = plugin(tmp_path, PLUGIN.format(name="mine_half") + "\nraise ValueError('late')\n")
    with pytest.raises(UserError, match="late"):
        load_plugin(path)
    assert "mine_half" not in router_names()
    assert not [name for name in sys.modules if name.startswith("modbench_plugin") and "half" in name]


@pytest.mark.parametrize(
    ("router", "options", "words"),
    [
        ("mod", {"capcity": 0.5}, "has no 'capcity'; did you mean 'capacity'"),
        ("mod", {"capacity": 0}, r"capacity is 0; it should be greater than 0"),
        ("mod", {"capacity": "half"}, "capacity is 'half'; it should be a valid number"),
        ("mod", {"every": True}, "every is True; it should be a valid integer"),
        ("mod", {"gate": "tanh"}, "gate is 'tanh'; it should be 'linear'"),
        ("vanilla", {"capacity": 0.5}, "has no 'capacity'; known: none"),
        ("token_choice", {"top_k": 1}, "set renormalise = false"),
        ("mode_integrated", {"no_op_experts": 0}, "no_op_experts is 0"),
    ],
)
def test_a_bad_option_names_field_value_and_remedy(router: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        build_router(router, options)
    assert f"router '{router}'" in str(raised.value)


@pytest.mark.parametrize("router", BUILT_IN)
def test_an_option_of_a_wrong_type_gets_one_sentence(router: str) -> None:
    deep = parsed_options([[f"value={'[' * 900}{']' * 900}"]])["value"]
    for option in (field.name for field in fields(router_class(router)) if field.init):
        for value in ([3], {"a": 1}, [[3] * 200], deep):
            with pytest.raises(UserError) as raised:
                build_router(router, {option: value})
            assert str(raised.value).startswith(f"router '{router}' {option} is ")
            assert len(str(raised.value)) <= 300


def test_a_required_option_says_where_to_give_it(tmp_path: Path) -> None:
    text = PLUGIN.format(name="mine_need").replace("strength: float = 1.0", "strength: float")
    load_plugin(plugin(tmp_path, text))
    with pytest.raises(UserError, match="needs 'strength'; give it a value"):
        build_router("mine_need")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", pytest.param("raise KeyError('k')", marks=pytest.mark.full)])
def test_a_built_in_router_that_a_plugin_imports_stays_built_in(end: str, tmp_path: Path) -> None:
    name = f"imports_{len(end)}"
    path = plugin(tmp_path, f"import modbench.routers.mod\n{PLUGIN.format(name=name)}\n{end}")
    code = (
        "from modbench.routing import registry\n"
        f"try: registry.load_plugin({str(path)!r})\n"
        "except registry.UserError: pass\n"
        "assert registry.plugin_sha256('mod') is registry.plugin_file('mod') is None\n"
        "registry.build_router('mod')\n"
        f"print(registry.plugin_file({name!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", f"{None if end else path}\n")
