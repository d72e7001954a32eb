"""A suite with plugins that have mistakes: each gets a sentence, and the other rows are run."""

from pathlib import Path

import pytest

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.report.store import read_records
from modbench.routing import registry
from modbench.sweep.cells import RefusedError, chosen, expand, with_plugins
from modbench.sweep.suite import load_suite
from modbench.sweep.timing_jobs import timing_cells

SUITE = """
[suite]
name = "mistakes"
[model]
width = 16
layers = 1
heads = 2
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 16
batch = 1
[measure]
heldout_tokens = 16
curve_tokens = 16
timing_repeats = 3
downstream = []
[sweep]
budgets = [1e7]
[[schemes]]
router = "vanilla"
[[schemes]]
router = "untyped"
"""
PLUGIN = """from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    {option} = 0.5
    def build_layer(self, model, layer):
        return {layer}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.installed_modules():  # imported once in a process, registered once
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("suite.toml").write_text(SUITE)
    Path("text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(200)))
    Path("untyped.py").write_text(PLUGIN.format(name="untyped", option="share", layer="None"))
    Path("no_layer.py").write_text(PLUGIN.format(name="no_layer", option="share: float", layer="None"))


UNTYPED = "plugin untyped.py: router 'untyped' (Mine): option 'share' has no type; write `share: float"
NO_LAYER = "router 'no_layer': build_layer of layer 0 (no_layer.py, line 10) returned NoneType; it must"


def test_other_rows_are_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "suite.toml", "--plugin", "untyped.py", "no_layer.py"]) == 2
    said = capsys.readouterr().err
    assert UNTYPED in said
    records = {
        record.cell["router"]["label"]: record for record in read_records(Path("results/mistakes"))
    }
    assert {label: record.status for label, record in records.items()} == {
        "vanilla": "ok",
        "no_layer": "failed",
    }
    assert records["no_layer"].error.startswith(NO_LAYER)
    assert NO_LAYER in said


def test_a_run_without_other_rows_ends_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    for plugin, sentence in (("untyped", UNTYPED), ("no_layer", NO_LAYER)):
        words = ["run", "suite.toml", "--plugin", f"{plugin}.py", "--only", plugin]
        if plugin == "no_layer":
            Path("suite.toml").write_text(SUITE.replace('[[schemes]]\nrouter = "untyped"', ""))
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert sentence in line
    assert not Path("results").exists()


@pytest.mark.parametrize("broken", ["untyped.py", "lazy.py"], ids=["in the suite", "at its import"])
def test_only_keeps_the_rows_without_a_mistake(broken: str) -> None:
    name = broken.removesuffix(".py")
    if name == "lazy":
        Path("suite.toml").write_text(SUITE.replace('[[schemes]]\nrouter = "untyped"', ""))
        text = PLUGIN.format(name=name, option="share: float", layer="None")
        Path(broken).write_text(f"import no_such_package\n{text}")
    mistakes: list[RefusedError] = []
    cells = expand(with_plugins(load_suite("suite.toml"), [Path(broken)], mistakes), mistakes)
    (cell,) = chosen(cells, ["vanilla", name], mistakes)
    assert cell["router"]["label"] == "vanilla"
    with pytest.raises(RefusedError, match=f"plugin {broken}"):
        chosen(cells, [name], mistakes)
    for wrong, right in (("vanila", "vanilla"), (f"{name}s", name)):
        with pytest.raises(UserError, match=f"--only: .*'{wrong}'; did you mean '{right}'.*known: "):
            chosen(cells, ["vanilla", wrong], mistakes)


def test_other_rows_are_timed() -> None:
    registry.load_plugin("no_layer.py")
    Path("suite.toml").write_text(SUITE.replace('"untyped"', '"no_layer"'))
    mistakes: list[RefusedError] = []
    cells = timing_cells(load_suite("suite.toml"), (), mistakes)
    assert [cell["router"]["label"] for cell in cells] == ["vanilla"]
    assert NO_LAYER in str(mistakes[0])
    with pytest.raises(UserError, match="no_layer"):
        timing_cells(load_suite("suite.toml"), ["no_layer"], mistakes)


def test_a_name_that_no_plugin_has_stays_a_mistake_of_the_suite(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "suite.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "[[schemes]] 'untyped': router 'untyped' is not known" in line
