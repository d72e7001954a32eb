"""`modbench.results` and `modbench.pairs`: typed, unrounded frames of what a report shows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_records import make_record, store

import modbench
from modbench.errors import UserError
from modbench.records.metrics import METRICS
from modbench.report.write import write_report

ROOT = Path(__file__).parents[2]


def test_a_row_is_a_run_at_one_budget_with_all_metrics_unrounded(tmp_path: Path) -> None:
    runs = [make_record("mod", seed=seed, loss=4 + 1 / 3 + seed) for seed in (0, 1)]
    lost = make_record("vanilla", status="diverged")
    frame = modbench.results(store(tmp_path, [*runs, lost]))
    assert list(frame["scheme"]) == ["mod", "mod", "vanilla"]
    assert list(frame["heldout_loss"][:2]) == [4 + 1 / 3, 5 + 1 / 3]
    assert frame["heldout_loss"].isna()[2]
    assert {*METRICS} - {*frame.columns} == {
        f"modbench_cloze{end}" for end in ("", "_untrained", "_chance")
    }
    assert list(frame["modbench_cloze:acc"][:2]) == [0.4, 0.4]  # as all scores of tasks
    assert (str(frame["budget"].dtype), str(frame["seed"].dtype)) == ("Int64", "Int64")
    assert not [name for name in frame.columns if name.startswith("_")]


def test_means_over_seeds_are_those_of_the_leaderboard_and_runs_csv_has_nine_digits(
    tmp_path: Path,
) -> None:
    folder = store(tmp_path, [make_record("mod", seed=seed, loss=4 + seed / 7) for seed in range(3)])
    write_report(folder)
    mean = modbench.results(folder)["heldout_loss"].mean()
    assert pd.read_csv(folder / "leaderboard.csv")["heldout_loss"][0] == pytest.approx(mean, rel=1e-8)
    rows = pd.read_csv(folder / "runs.csv", dtype=str)
    assert list(rows["heldout_loss"]) == ["4.0", "4.14285714", "4.28571429"]


def test_pairs_are_those_of_differences_csv(tmp_path: Path) -> None:
    losses = {"vanilla": (5.0, 5.1, 5.02), "mod": (4.5, 4.61, 4.53)}
    runs = [
        make_record(label, seed=seed, loss=loss)
        for label, of in losses.items()
        for seed, loss in enumerate(of)
    ]
    folder = store(tmp_path, runs)
    write_report(folder)
    pairs, stored = modbench.pairs(folder), pd.read_csv(folder / "differences.csv")
    assert list(pairs.dropna(axis=1, how="all").columns) == list(stored.columns)
    assert list(pairs["verdict"]) == list(stored["verdict"]) == ["better", "worse"]
    np.testing.assert_allclose(pairs["p"].astype(float), stored["p"], rtol=1e-8)


def test_a_folder_without_results_or_curves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no isoFLOP curves"):
        modbench.curves(store(tmp_path / "one", [make_record("mod")]))
    for read in (modbench.results, modbench.pairs, modbench.curves):
        with pytest.raises(UserError, match="there are no records"):
            read(tmp_path / "nowhere")


def test_the_example_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "checking_a_result.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert "token_choice" in capsys.readouterr().out
    assert len(names["runs"]) == 12


def test_the_notebook_draws_the_curves_and_the_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(ROOT)
    notebook = json.loads((ROOT / "examples" / "figures_of_your_own.ipynb").read_text())
    names: dict[str, Any] = {}
    drawn = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            drawn.append(names.get("axes"))
    points, differences = drawn[1], drawn[2]
    schemes = names["curves"].optima["scheme"].nunique()
    assert (len(points.lines), len(differences.containers)) == (2 * schemes, schemes - 1)
    pyplot.close("all")


def test_a_budget_that_no_float_holds_names_the_same_rows_everywhere(tmp_path: Path) -> None:
    budget = 1234567890123456789
    runs = [
        make_record(label, seed=seed, loss=loss, train={"budget": budget})
        for label, loss in (("vanilla", 5.0), ("mod", 4.5))
        for seed in range(3)
    ]
    folder = store(tmp_path, runs)
    write_report(folder)
    assert {*modbench.pairs(folder)["budget"]} == {*modbench.results(folder)["budget"]} == {budget}
    assert f",{budget}," in (folder / "differences.csv").read_text()


def test_a_column_without_a_value_has_its_type(tmp_path: Path) -> None:
    frame = modbench.results(store(tmp_path, [make_record("mod")]))
    types = {name: str(frame[name].dtype) for name in ("error", "shape", "depth")}
    assert types == {"error": "string", "shape": "string", "depth": "Int64"}
