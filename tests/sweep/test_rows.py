"""The rows of a suite: a plugin's mistake costs its rows."""

import re
from pathlib import Path

import pytest
from small_suite import write_suite

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.result import results_of
from modbench.records.store import read_suite
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import chosen, expand

PLUGIN = """from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.routing.router import Router
{first}
@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Mine(Router):
    share: float = 0.5
    def build_layer(self, model, layer):
        {build}
        return Sub(model, layer)
class Sub(Block):
    def ledger(self, workload):
        {ledger}
        return super().ledger(workload)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path, "mistakes", "vanilla")


def plugin(name: str, first: str = "", build: str = "pass", ledger: str = "pass") -> Path:
    file = Path(f"{name}.py")
    file.write_text(PLUGIN.format(name=name, first=first, build=build, ledger=ledger))
    return file


def resolved(*plugins: Path, more: str = "") -> Rows:
    with open("suite.toml", "a") as suite:
        suite.write(more)
    return resolve(load_suite("suite.toml"), plugins)


def labels(rows: Rows) -> list[str]:
    return [wanted.label for wanted in expand(rows)]


def test_a_router_that_the_suite_does_not_name_gets_a_row() -> None:
    rows = resolved(plugin("fresh"))
    vanilla, fresh = expand(rows)
    assert (vanilla.label, fresh.label) == ("vanilla", "fresh")
    assert fresh.run.router.options == {"share": 0.5}
    assert len(fresh.run.router.plugin_sha256) == 64
    assert rows.plugins_of(fresh.run.router) == [str(Path("fresh.py").resolve())]
    assert vanilla.run.router.plugin_sha256 is None
    assert rows.plugins_of(vanilla.run.router) == []
    assert rows.resolved["fresh"].flops == rows.resolved["vanilla"].flops


def test_a_router_that_the_suite_names_is_not_added_again() -> None:
    more = '[[schemes]]\nrouter = "named"\nlabel = "mine"\noptions.share = 0.1\n'
    _, mine = expand(resolved(plugin("named"), more=more))
    assert (mine.label, mine.run.router.options) == ("mine", {"share": 0.1})


@pytest.mark.parametrize(
    ("base", "like", "width"),
    [("DepthRouter", "mod", 48), ("ExpertRouter", "token_choice", 32), ("Router", "vanilla", 24)],
)
def test_an_added_row_has_the_settings_of_the_row_with_its_base_class(
    base: str, like: str, width: int
) -> None:
    file = plugin(f"new_{base}", first=f"from modbench import {base} as Router")
    routers = "mod:gaussian", "mod", "token_choice", "vanilla"
    write_suite(Path(), "mistakes", *routers, model={"layers": 2})
    text = Path("suite.toml").read_text()
    for router, of in {"mod:gaussian": 20, "mod": 48, "token_choice": 32, "vanilla": 24}.items():
        own = f"model.width = {of}\ntrain.learning_rate = {of}e-4\n"
        text = text.replace(f'"{router}"\n', f'"{router}"\nlabel = "own {router}"\n{own}')
    Path("suite.toml").write_text(text)
    rows = resolved(file)
    added = expand(rows)[-1]
    assert (added.label, added.run.model.width) == (f"new_{base}", width)
    assert added.run.train.learning_rate == float(f"{width}e-4")
    (said,) = rows.additions([])
    assert f"row 'own {like}'" in said


#: Plugins whose code raises at their import or in a row, and what is said of them.
BROKEN = {
    "raises": ({"first": "1 / 0"}, r"plugin raises\.py raised ZeroDivisionError: .*line 5"),
    "late": ({"build": "1 / 0"}, r"'late': router 'late' raised ZeroDivisionError: .*late\.py.*line 11"),
    "miscounts": ({"ledger": "raise KeyError('k')"}, "router 'miscounts' raised KeyError: 'k'"),
}


def test_a_plugin_that_breaks_costs_its_own_row() -> None:
    plugins = [plugin(name, **broken) for name, (broken, _) in BROKEN.items()]
    rows = resolved(*plugins, plugin("good"), more='[[schemes]]\nrouter = "raises"\n')
    cells = expand(rows)
    assert [wanted.label for wanted in cells] == ["vanilla", "good"]
    said = [str(mistake) for mistake in rows.mistakes]
    assert len(said) == len(BROKEN)
    for sentence, (_, reason) in zip(said, BROKEN.values(), strict=True):
        assert re.search(reason, sentence), sentence
    with pytest.raises(UserError, match=re.escape(said[0])):
        chosen(cells, ["late"], rows.mistakes)


def test_an_unknown_router_is_refused_when_all_plugins_were_read() -> None:
    with pytest.raises(UserError, match="'other': router 'other' is not known"):
        resolved(plugin("known_one"), more='[[schemes]]\nrouter = "other"\n')


def test_a_wrong_option_of_a_plugins_row_costs_that_row() -> None:
    rows = resolved(plugin("opts"), more='[[schemes]]\nrouter = "opts"\noptions.shares = 1.0\n')
    assert labels(rows) == ["vanilla"]
    assert "[[schemes]] 'opts': router 'opts' has no 'shares'; did you mean" in str(rows.mistakes[0])


def test_a_router_that_cannot_take_a_shape_costs_that_row() -> None:
    build = "if model.width < 32: raise ValueError('too narrow')"
    shapes = '[[shapes]]\nlabel = "s"\n[[shapes]]\nlabel = "w"\nwidth = 32\n'
    rows = resolved(plugin("wide", build=build), more=shapes)
    assert labels(rows) == ["vanilla/s", "vanilla/w", "wide/w"]
    assert "too narrow" in str(rows.mistakes[0])


def test_the_other_rows_are_run_and_the_exit_code_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = plugin("bad_run", build="1 / 0"), plugin("good_run")
    assert main(["run", "suite.toml", "--plugin", str(bad), str(good)]) == 2
    assert "router 'bad_run' raised ZeroDivisionError" in capsys.readouterr().err
    results = results_of(read_suite(Path("my-results/mistakes")))
    assert {result.label: result.status for result in results} == {
        "vanilla": "ok",
        "good_run": "ok",
    }
