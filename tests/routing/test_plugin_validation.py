"""A router's own code that answers wrongly, or ends the program: the same sentence from every verb."""

from pathlib import Path

import pytest

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing import registry
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, load_plugin

PLUGIN = """
import sys
from dataclasses import dataclass
from modbench.ledger import Flops, Ledger
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
        return Wrong(model, layer)
"""
LEDGER = "def ledger(self, load): return super().ledger(load) + Ledger({{{entry}}})"


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry._installed():  # imported once in a process, registered once
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """Where `plugin` writes to."""
    return tmp_path / "wrong.py"


def plugin(path: Path, method: str = "pass", build: str = "pass") -> Path:
    path.write_text(PLUGIN.format(method=method, build=build))
    return path


def entry(text: str) -> str:
    return LEDGER.format(entry=text)


VERBS = (
    "flops --router wrong",
    "flops gate --golden table.json --accept",
    "plan --router wrong --tokens 1B --gpus 1",
)
WRONG = {
    "negative": (
        entry("(0, 'x', 'forward'): Flops(-7, -7)"),
        "ledger of layer 0 says Flops(model=-7, full=-7, executed=-7) of (0, 'x', 'forward')",
    ),
    "no number": (entry("(0, 'x', 'forward'): Flops(float('nan'), 1)"), "says Flops(model=nan, full=1"),
    "fraction": (entry("(0, 'x', 'forward'): Flops(1, 1, 1.5)"), "executed=1.5) of (0, 'x', 'forward')"),
    "no flops": (entry("(0, 'x', 'forward'): 7"), "ledger of layer 0 says 7 of (0, 'x', 'forward')"),
    "direction": (entry("(0, 'x', 'sideways'): Flops(7, 7)"), "has the key (0, 'x', 'sideways'); a key"),
    "short key": (entry("'x': Flops(7, 7)"), "ledger of layer 0 has the key 'x'; a key is"),
    "no component": (entry("(0, None, 'forward'): Flops(7, 7)"), "has the key (0, None, 'forward');"),
    "ledger raises": (
        "def ledger(self, load): 1 / 0",
        "raised ZeroDivisionError: division by zero in le",
    ),
    "active raises": (
        "def active_parameters(self): raise ValueError('lost')",
        "router 'wrong' raised ValueError: lost in active_parameters of layer 0; mend it",
    ),
    "active fraction": (
        "def active_parameters(self): return 5.5",
        "active_parameters of layer 0 says 5.5; it must be a whole number, 0 to the layer's",
    ),
    "active ends": (
        "def active_parameters(self): sys.exit(0)",
        "router 'wrong' raised SystemExit: 0 in active_parameters of layer 0; mend it",
    ),
    "ledger ends": ("def ledger(self, load): sys.exit(5)", "raised SystemExit: 5 in ledger of layer 0"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("method", "sentence"), WRONG.values(), ids=WRONG)
def test_every_verb_says_the_same_of_a_wrong_answer(
    verb: str,
    method: str,
    sentence: str,
    wrong: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(wrong.parent)
    assert main([*verb.split(), "--plugin", str(plugin(wrong, method))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("modbench: router 'wrong'")
    assert sentence in line
    assert not (wrong.parent / "table.json").exists()


@pytest.mark.parametrize("verb", VERBS)
def test_a_router_that_ends_the_program_while_it_builds_is_no_success(
    verb: str, wrong: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(wrong.parent)
    assert main([*verb.split(), "--plugin", str(plugin(wrong, build="sys.exit(0)"))]) == 2
    assert "router 'wrong' raised SystemExit: 0 in build_layer for layer 0" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["flops --router wrong --profile", VERBS[-1]])
def test_a_layer_that_ends_the_program_while_it_runs_is_no_success(
    verb: str, wrong: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = plugin(wrong, "def forward(self, x_BTD, context): sys.exit(0)")
    assert main([*verb.split(), "--plugin", str(ends)]) == 2
    assert "raised SystemExit" in capsys.readouterr().err


def test_what_ends_the_program_elsewhere_is_no_success_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(*_: object, **__: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("modbench.accounting.statement.stated", ends)
    assert main(["flops", "--router", "vanilla"]) == 2
    assert "raised SystemExit: 0" in capsys.readouterr().err


def test_first_weights_that_raise_get_one_sentence(wrong: Path) -> None:
    load_plugin(plugin(wrong, "def initialise(self, seed): sys.exit(0)"))
    with pytest.raises(UserError, match="router 'wrong' raised SystemExit: 0 in initialise; mend it"):
        build_model(ModelConfig(width=16, layers=1, heads=1), build_router("wrong"))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ("5", "raised AttributeError.* in nominal_counts of layer 0"),
        ("{'depth': (1,)}", "raised ValueError.* in nominal_counts of layer 0"),
        (
            "{(0, 'depth'): (1.5,)}",
            r"nominal_counts of layer 0 says \(1.5,\) of \(0, 'depth'\); it must be",
        ),
        (
            "{(0, 'depth'): (-1,)}",
            r"nominal_counts of layer 0 says \(-1,\) of \(0, 'depth'\); it must be",
        ),
    ],
)
def test_a_promise_that_is_no_count_is_refused(returned: str, words: str, wrong: Path) -> None:
    load_plugin(plugin(wrong, f"def nominal_counts(self, workload): return {returned}"))
    model = RoutedDecoder(ModelConfig(width=16, layers=1, heads=1), build_router("wrong"))
    with pytest.raises(UserError, match=f"router 'wrong':? {words}"):
        model.nominal_counts(Workload.uniform(1, 2))


def test_the_promises_of_all_layers_are_told_together() -> None:
    config = ModelConfig(width=16, layers=4, heads=1)
    model = RoutedDecoder(config, build_router("mod", {"capacity": 0.5, "every": 2}))
    assert set(model.nominal_counts(Workload.uniform(2, 8))) == {(1, "depth"), (3, "depth")}
