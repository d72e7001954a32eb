"""Errors in a router's own code: one sentence that names router, method and layer."""

from pathlib import Path

import pytest

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing import registry
from modbench.routing.build import RoutedDecoder
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, load_plugin

PLUGIN = """
import sys
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

class Wrong(Block):
    {method}

@register_router("wrong")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    def build_layer(self, model, layer):
        {build}
"""
SHAPE = ModelConfig(vocabulary=9, width=8, layers=1, heads=1)


@pytest.fixture(autouse=True)
def _restored_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.installed_modules():  # registered at its first import
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))


def plugin(folder: Path, method: str = "pass", build: str = "return Wrong(model, layer)") -> Path:
    path = folder / "wrong.py"
    path.write_text(PLUGIN.format(method=method, build=build))
    return path


@pytest.mark.parametrize(
    "command",
    [
        "flops --router wrong",
        "flops gate --golden table.json --accept",
        "plan --router wrong --tokens 1B --gpus 1",
    ],
)
def test_every_command_prints_the_sentence(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = plugin(tmp_path, "def ledger(self, workload): 1 / 0")
    assert main([*command.split(), "--plugin", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "modbench: router 'wrong' raised ZeroDivisionError: division by zero in ledger "
        "(wrong.py, line 9); fix it"
    )
    assert not (tmp_path / "table.json").exists()


def _ask(model: RoutedDecoder) -> None:
    model.ledger(Workload.uniform(1, 2))
    model.parameter_count("active")
    model.nominal_counts(Workload.uniform(1, 2))


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        (
            "def ledger(self, workload): return 5",
            "'int' object has no attribute 'entries' in ledger",
        ),
        ("def ledger(self, workload): sys.exit(0)", "SystemExit: 0 in ledger (wrong.py, line 9)"),
        (
            "def active_parameters(self): 1 / 0",
            "division by zero in active_parameters (wrong",
        ),
        ("def nominal_counts(self, workload): return 5", "TypeError: "),
    ],
)
def test_a_method_of_a_layer_that_raises_is_named(method: str, sentence: str, tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, method))
    model = RoutedDecoder(SHAPE, build_router("wrong"))
    with pytest.raises(UserError) as error:
        _ask(model)
    assert str(error.value).startswith("router 'wrong' raised ")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            "raise KeyError('lost')",
            " raised KeyError: 'lost' in build_layer of layer 0 (wrong.py, line 15); fix it",
        ),
        ("sys.exit(0)", " raised SystemExit: 0 in build_layer of layer 0 (wrong.py, line 15); fix it"),
        (
            "return None",
            ": build_layer (wrong.py, line 14) returned NoneType; expected a Layer",
        ),
    ],
)
def test_a_layer_that_is_not_built_names_router_and_layer(
    build: str, sentence: str, tmp_path: Path
) -> None:
    load_plugin(plugin(tmp_path, build=build))
    with pytest.raises(UserError) as error:
        RoutedDecoder(SHAPE, build_router("wrong"))
    assert str(error.value).startswith(f"router 'wrong'{sentence}")


MINE = """from dataclasses import dataclass
from modbench import {base}, register_router

@register_router("wrong")
@dataclass(frozen=True, kw_only=True)
class Mine({base}):
    {body}
"""


@pytest.mark.parametrize(
    ("base", "body", "sentence"),
    [
        (
            "DepthRouter",
            "capacity: float = 2.0",
            "router 'wrong': capacity is 2.0; it should be less than or equal to 1",
        ),
        (
            "ExpertRouter",
            "def __post_init__(self): super(Mine, self).__post_init__()\n    top_k: int = 9",
            "router 'wrong': top_k is 9 of 8 experts; it must lie between 1 and experts",
        ),
        (
            "DepthRouter",
            "first_dense: int = 5",
            "router 'wrong': no block of 1 is routed with every 2, offset None, first_dense 5 and "
            "last_dense 0; leave room for one",
        ),
    ],
    ids=["default", "own post-init", "shape"],
)
def test_an_impossible_option_or_shape_names_the_router_once(
    base: str, body: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(MINE.format(base=base, body=body))
    load_plugin(path)
    with pytest.raises(UserError) as error, authors_code(registry.router_class("wrong"), "a step"):
        RoutedDecoder(SHAPE, build_router("wrong"))
    assert str(error.value) == sentence


def test_the_nominal_counts_of_all_layers_are_joined() -> None:
    config = ModelConfig(width=16, layers=4, heads=1)
    model = RoutedDecoder(config, build_router("mod", {"capacity": 0.5, "every": 2}))
    assert set(model.nominal_counts(Workload.uniform(2, 8))) == {(1, "depth"), (3, "depth")}
