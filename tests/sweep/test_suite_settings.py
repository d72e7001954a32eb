"""Settings of the command line in place of those of the suite file; rows that a plugin adds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_suite import modbench_says, write_suite

from modbench.cli.main import main
from modbench.cli.options import suite_settings
from modbench.errors import UserError
from modbench.records.store import read_suite
from modbench.sweep.suite import Suite, load_suite

PLUGIN = """
from dataclasses import dataclass
from modbench import DepthRouter, register_router

@register_router("added_by_settings")
@dataclass(frozen=True, kw_only=True)
class Added(DepthRouter):
    pass
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path, "settings", "vanilla")


def loaded(*pairs: str, seeds: str | None = None, budget: str | None = None) -> Suite:
    return load_suite("suite.toml", suite_settings([pairs], seeds, budget))


def test_settings_stand_in_place_of_those_of_the_file() -> None:
    suite = loaded("train.learning_rate=3e-3", "data.tokenizer=bpe", "model.layers=3")
    assert (suite.train.learning_rate, suite.data.tokenizer) == (3e-3, "bpe")
    assert suite.stated[""]["layers"] == 3
    suite = loaded(seeds="0,1", budget="1e12,3_000_000_000_000")
    assert (suite.axes.seeds, suite.axes.budgets) == ((0, 1), (10**12, 3 * 10**12))
    assert isinstance(loaded(budget="1e12").axes.budgets[0], int)


@pytest.mark.parametrize(
    ("pairs", "options", "sentence"),
    [
        (["train.learningrate=1"], {}, "[train] has no 'learningrate'; did you mean 'learning_rate'"),
        (["learning_rate=1"], {}, "--set learning_rate: it must be TABLE.KEY=VALUE"),
        ([], {"budget": "much"}, "--budget much: whole numbers are expected, such as 1e12"),
        (["sweep.seeds=[1]"], {"seeds": "0"}, "--seeds and --set sweep.seeds are both given"),
    ],
)
def test_a_wrong_setting_has_the_error_of_the_suite(
    pairs: list[str], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        loaded(*pairs, **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("name", "own"),
    [("model.width", "model.width"), ("sweep.seeds", "seeds")],
)
def test_a_setting_that_each_row_states_itself_is_refused(name: str, own: str) -> None:
    with open("suite.toml", "a") as file:
        file.write(f"{own} = 32\n")
        file.flush()
        with pytest.raises(UserError, match=f"{name} changes no row"):
            loaded(f"{name}=24")
        file.write('[[schemes]]\nrouter = "mod"\n')
        file.flush()
        if name == "sweep.seeds":  # the row would keep all of its runs
            with pytest.raises(UserError, match=f"{name} changes only some rows"):
                loaded(f"{name}=24")
        else:
            assert len(loaded(f"{name}=24").schemes) == 2


def test_plan_and_run_take_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "train.learning_rate=3e-3", "--seeds", "0,1", "--budget", "2e7"]
    assert main(["plan", "suite.toml", "--format", "json", *settings]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["runs"], document["parts"][0]["budget"]) == (2, 2 * 10**7)

    code, out = modbench_says(tmp_path, "run", "suite.toml", *settings)
    assert code == 0, out
    folder = tmp_path / "my-results" / "settings"
    runs = [record.what for record in read_suite(folder).runs]
    assert sorted(run.seed for run in runs) == [0, 1]
    assert {(run.train.learning_rate, run.schedule.budgets) for run in runs} == {(3e-3, (2 * 10**7,))}

    # Other settings in the same folder: rows of their own.
    settings[1] = "train.learning_rate=1e-3"
    code, out = modbench_says(tmp_path, "run", "suite.toml", *settings)
    assert code == 0, out
    page = (folder / "leaderboard.md").read_text().replace("\\", "")
    assert len(set(re.findall(r"vanilla \[\w+\]", page))) == 2


def test_rows_that_a_plugin_adds_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "more.py").write_text(PLUGIN)
    (tmp_path / "suite.toml").write_text(
        (tmp_path / "suite.toml").read_text().replace("layers = 1", "layers = 2")
    )
    note = "added by --plugin more.py; the suite does not name it"
    assert main(["plan", "suite.toml", "--plugin", "more.py"]) == 0
    assert note in capsys.readouterr().out
    for only, marked in (("added_by_settings#0", True), ("vanilla", False)):
        code, out = modbench_says(
            tmp_path, "run", "suite.toml", "--plugin", "more.py", "--only", only, "--seeds", "0,1"
        )
        assert code == 0, out
        assert (f"row 'added_by_settings' was {note}" in " ".join(out.split())) == marked
