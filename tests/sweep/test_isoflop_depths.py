"""Suites with isoFLOP curves of several depths: their runs, learning rates and records."""

from pathlib import Path
from typing import Any

import pytest
from test_isoflop_suite import of, rate, suite

from modbench.errors import UserError
from modbench.records.finished import Finished, finished
from modbench.sweep.refuse import check_unchanged
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, load_suite
from modbench.sweep.wanted import chosen, expand, expand_planned, losses_of

ROOT = Path(__file__).parents[2]
ISOFLOP: dict[str, Any] = {"width_step": 2, "refine": False, "rate_seed": 7, "layers": [2, 4]}


def deep(schemes: list[dict[str, Any]] | None = None, **isoflop: Any) -> Suite:
    schemes = [{"router": "vanilla"}, {"router": "mod"}] if schemes is None else schemes
    return suite(schemes, model={"heads": 1}, isoflop=ISOFLOP | isoflop)


def test_each_scheme_and_depth_has_runs_of_the_suite_of_that_depth_alone() -> None:
    """Also the same keys, so that records can be taken over."""
    joined = expand_planned(resolve(deep()))
    for layers in (2, 4):
        alone = {name: value for name, value in ISOFLOP.items() if name != "layers"}
        schemes: list[dict[str, Any]] = [{"router": "vanilla"}, {"router": "mod"}]
        of_depth = suite(schemes, model={"heads": 1, "layers": layers}, isoflop=alone)
        expected = [wanted.run.key for wanted in expand_planned(resolve(of_depth))]
        assert [wanted.run.key for wanted in joined if wanted.depth == layers] == expected
    assert {wanted.depth for wanted in joined} == {2, 4}
    assert all(wanted.run.model.layers == wanted.depth for wanted in joined)


def test_rows_are_named_by_width_and_depth() -> None:
    runs = expand(resolve(deep()))
    width = runs[0].run.model.width
    assert runs[0].label == f"vanilla/w{width}x2"
    assert {wanted.scheme for wanted in runs} == {"vanilla", "mod"}
    assert chosen(runs, ["mod"]) == of(runs, "mod")
    assert {wanted.run.model.layers for wanted in chosen(runs, [runs[0].label])} == {2}


def test_rates_are_chosen_at_each_depth() -> None:
    rows = resolve(deep([{"router": "vanilla"}]))
    best = {2: 0.0025, 4: 0.005}
    losses: dict[str, float | None] = {}
    for _ in range(2):  # one more rate below 0.0025 is tried
        runs = expand(rows, losses)
        for wanted in runs:
            losses[wanted.run.key] = 3.0 + (rate(wanted) != best[wanted.run.model.layers])
    curves = [wanted for wanted in expand(rows, losses) if wanted.run.seed == 0]
    for layers, chosen_rate in best.items():
        trials = [w for w in runs if w.depth == layers and w.run.seed == 7 and w.budget == 2 * 10**10]
        middle = trials[0].run.model.width
        assert {rate(w) for w in curves if w.depth == layers and w.run.model.width == middle} == {
            chosen_rate
        }


def test_a_depth_and_a_scheme_at_a_depth_have_settings_of_their_own() -> None:
    schemes = [
        {"router": "vanilla"},
        {"router": "mod", "layers": [4], "tokens_per_parameter": {"4": 5.0}},
    ]
    at = {"4": {"tokens_per_parameter": 40.0, "learning_rates": [1e-3, 2e-3, 4e-3], "exponent": -1.0}}
    of_suite = deep(schemes, at=at)
    families = {scheme.name: of_suite.family_of(scheme) for scheme in of_suite.schemes}
    assert {name: family.tokens_per_parameter for name, family in families.items()} == {
        "vanilla at 2 layers": 20.0,
        "vanilla at 4 layers": 40.0,
        "mod at 4 layers": 5.0,
    }
    assert [family.exponent for family in families.values()] == [-0.5, -1.0, -1.0]
    runs = expand(resolve(of_suite))
    assert {rate(wanted) for wanted in runs if wanted.depth == 4} == {1e-3, 2e-3, 4e-3}
    assert {rate(wanted) for wanted in runs if wanted.depth == 2} == {2.5e-3, 5e-3, 1e-2}


def test_a_depth_keeps_its_exponent(tmp_path: Path) -> None:
    run = Finished("run", "k", "ok")
    record = Finished("suite", "s", exponents=((2, -0.5), (4, -0.7)), margin=0.01)
    kept = resolve(deep(at={"4": {"exponent": -0.7}}))
    check_unchanged(kept, expand_planned(kept), [replaced(run, kept), record], tmp_path)
    changed = resolve(deep())
    with pytest.raises(UserError, match=r"\[isoflop\] exponent at 4 layers -0.7 \(now -0.5\)"):
        check_unchanged(changed, [], [run, record], tmp_path)


def replaced(run: Finished, rows: Any) -> Finished:
    return run._replace(key=expand_planned(rows)[0].run.key)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"isoflop": ISOFLOP}, r"\[model\] layers and \[isoflop\] layers both give the depth"),
        (
            {"isoflop": ISOFLOP | {"at": {"8": {"sizes": 7}}}},
            "at has keys for 8 layers, which layers",
        ),
        (
            {"schemes": [{"router": "mod", "layers": [8]}]},
            "'mod' layers has 8, which",
        ),
        (
            {"schemes": [{"router": "mod", "tokens_per_parameter": {"8": 1.0}}]},
            r"'mod' tokens_per_parameter has 8, which \[isoflop\] layers",
        ),
    ],
)
def test_contradictions_on_the_depth_are_refused(tables: dict[str, Any], sentence: str) -> None:
    model = {"heads": 1, "layers": 2} if "both give the depth" in sentence else {"heads": 1}
    with pytest.raises(UserError, match=f"^suite mine.toml.*{sentence}"):
        suite(**{"model": model, "isoflop": ISOFLOP, **tables})


def test_the_depth_suite_takes_over_the_four_layers_of_isoflop_cpu() -> None:
    """Those of its schemes: the same runs have the same keys."""
    records = finished(ROOT / "results" / "isoflop-cpu")
    done = losses_of(records)
    of_suite = load_suite("isoflop-depth")
    keys = {wanted.run.key for wanted in expand(resolve(of_suite), done)}
    schemes = {scheme.label for scheme in of_suite.schemes}
    runs = expand(resolve(load_suite("isoflop-cpu")), done)
    mine = {wanted.run.key for wanted in runs if wanted.scheme in schemes}
    assert len(mine) > 70
    assert mine <= keys


def test_the_committed_records_of_the_depth_sweep_are_runs_of_its_suite() -> None:
    records = finished(ROOT / "results" / "isoflop-depth")
    keys = {
        wanted.run.key for wanted in expand(resolve(load_suite("isoflop-depth")), losses_of(records))
    }
    stored = {record.key for record in records if record.kind == "run"}
    assert len(stored) > 80
    assert stored <= keys
