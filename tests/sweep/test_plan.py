"""`modbench plan SUITE`: runs, FLOPs, tokens and passes."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_records import make_record, store, suite_record
from small_suite import write_suite

from modbench.cli.main import main
from modbench.data.token_data import prepare
from modbench.report.suite import read
from modbench.routing.build import meta_decoder
from modbench.sweep.plan import SuitePlan, as_json, as_table, plan_suite
from modbench.sweep.request import SuiteRequest
from modbench.sweep.rows import resolve
from modbench.sweep.suite import load_suite
from modbench.train.optimizer import optimizer_ledger

ISOFLOP = {
    "model": {"layers": 2, "heads": 1},
    "train": {"sequence": 32, "batch": 2},
    "isoflop": {"width_step": 2, "rate_seed": 0},
    "sweep": {"budgets": [10**10, 2 * 10**10, 4 * 10**10], "seeds": [0, 1]},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def isoflop_suite(*routers: str, **isoflop: Any) -> None:
    """Write suite.toml with isoFLOP grids."""
    tables = {**ISOFLOP, "isoflop": {**ISOFLOP["isoflop"], **isoflop}}
    if "layers" in isoflop:
        tables["model"] = {"heads": 1, "layers": None}
    write_suite(Path(), "planned", *routers, **tables)


def planned(*only: str) -> SuitePlan:
    request = SuiteRequest(name="suite.toml", results=Path("my-results"), only=only)
    return plan_suite(request, tell=lambda text: None)


def prepared() -> int:
    """Prepare the text; return its training tokens."""
    return len(prepare(load_suite("suite.toml").data, say=lambda text: None).train_N)


def test_a_plan_has_the_runs_flops_tokens_and_passes_of_each_scheme_and_budget() -> None:
    sweep = {"budgets": [1e7, 3e7], "seeds": [0, 1, 2]}
    write_suite(Path(), "planned", "vanilla", "mod", sweep=sweep, model={"layers": 2})
    with open("suite.toml", "a") as suite:
        suite.write('[[shapes]]\nlabel = "s"\n[[shapes]]\nlabel = "l"\nwidth = 32\nlayers = 4\n')
    text, plan = prepared(), planned()
    rows = resolve(load_suite("suite.toml"))
    assert [(part.scheme, part.budget) for part in plan.parts] == [
        (f"{scheme}/{size}", budget)
        for size in ("s", "l")
        for scheme in ("vanilla", "mod")
        for budget in (10**7, 3 * 10**7)
    ]
    for part in plan.parts:
        flops = rows.resolved[part.scheme].flops
        assert part.sizes == (((16, 2),) if part.scheme.endswith("/s") else ((32, 4),))
        assert part.runs == 3
        assert part.flops == 3 * (part.budget // flops * flops)
        assert part.tokens == part.budget // flops * 16
        assert part.passes == part.tokens / text
    assert (plan.runs, plan.flops) == (24, sum(part.flops for part in plan.parts))


def test_a_plan_states_what_the_optimizer_costs_per_training_token() -> None:
    train = {"sequence": 16, "batch": 2, "optimizer": "muon"}
    write_suite(Path(), "planned", "vanilla", "token_choice", train=train, model={"layers": 2})
    plan = planned()
    for part, document in zip(plan.parts, as_json(plan)["parts"], strict=True):
        row = resolve(plan.suite).resolved[part.scheme]
        model = meta_decoder(row.name, row.options, plan.suite.shape_of(plan.suite.schemes[0]))
        step = optimizer_ledger(model, plan.suite.train).total("executed")
        assert document["optimizer_flops_per_token"] == step / (2 * 16)
        assert document["optimizer_flops"] == part.budget // row.flops * step
        assert f"({part.optimizer_flops / part.flops:.1%})" in as_table(plan)
    write_suite(Path(), "planned", "vanilla")
    assert "optimizer" not in as_table(planned())
    assert as_json(planned())["parts"][0]["optimizer_flops_per_token"] == 0


@pytest.mark.parametrize(("nats", "seeds"), [("0.07", 2), ("0.05", 3), ("0.03", 8), ("0.02", 17)])
def test_a_plan_says_how_many_seeds_a_difference_needs(
    nats: str, seeds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = {"budgets": [1e7], "seeds": [0, 1]}
    write_suite(Path(), "planned", "vanilla", "mod", sweep=sweep, model={"layers": 2})
    words = ["plan", "suite.toml", "--detect", nats]
    assert main([*words, "--noise", "0.0204", "--format", "json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = plan["detect"]
    assert (found["seeds"], found["rows"], found["runs"]) == (seeds, 2, 2 * seeds)
    assert found["flops"] * 2 == plan["flops"] * seeds
    for wrong, said in (([], "--noise 0.02"), (["--noise", "-1"], "--noise is -1; it must be above 0")):
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_the_noise_of_a_plan_is_that_of_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"vanilla": (4.0, 4.02, 4.04), "mod": (4.0, 4.03, 4.02)}
    runs = [
        make_record(name, seed=seed, loss=loss)
        for name, of in losses.items()
        for seed, loss in enumerate(of)
    ]
    folder = store(Path("there") / "planned", runs, suite_record(runs))
    sweep = {"budgets": [1e7], "seeds": [0]}
    write_suite(Path(), "planned", "vanilla", "mod", sweep=sweep, model={"layers": 2})
    assert main(["plan", "suite.toml", "--detect", "0.03", "--results", "there"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    noise = read(folder)[1].noise[1].pooled
    assert f"the noise of one run is {noise.sd:.4f} (there/planned, {noise.freedom} degrees" in said


def test_the_rows_after_only_are_planned() -> None:
    write_suite(Path(), "planned", "vanilla", "mod", model={"layers": 2}, sweep={"budgets": [1e8, 1e9]})
    assert {part.scheme for part in planned("mod").parts} == {"mod"}
    assert planned("mod@1e9#0").runs == 1


def test_an_isoflop_suite_is_planned_with_its_trials_and_the_check_of_its_law() -> None:
    isoflop_suite("vanilla", passes=100.0)
    plan = planned()
    assert [part.runs for part in plan.parts] == [5, 2 + 5 * 2 + 2 * 2, 5 + 2]
    assert all(len(part.sizes) == 5 for part in plan.parts)
    assert "as if the middle learning rate is best" in as_table(plan)


def test_a_plan_of_several_depths_has_a_row_for_each() -> None:
    isoflop_suite("vanilla", "mod", layers=[2, 4], passes=400.0)
    plan = planned()
    names = [(part.scheme, part.depth) for part in plan.parts]
    expected = [(name, depth) for name in ("vanilla", "mod") for depth in (2, 4)]
    assert list(dict.fromkeys(names)) == expected
    assert all({layers for _, layers in part.sizes} == {part.depth} for part in plan.parts)
    assert plan.runs == 4 * 28
    assert "mod at 4 layers" in as_table(plan)
    parts = as_json(plan)["parts"]
    assert {(part["scheme"], part["depth"]) for part in parts} == set(names)


def test_text_that_would_be_streamed_is_not_prepared_by_a_plan() -> None:
    write_suite(Path(), "planned", "vanilla")
    plan = planned()
    assert (plan.train_tokens, plan.parts[0].passes) == (None, None)
    assert "epochs: unknown, since text 'text' is not prepared" in as_table(plan)
    assert not Path("cache").exists()


def test_more_passes_than_allowed_are_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    isoflop_suite("vanilla", "mod")
    text = prepared()
    isoflop_suite("vanilla", "mod", passes=1000.0)
    worst = max(planned().parts, key=lambda part: part.tokens)
    isoflop_suite("vanilla", "mod")
    assert main(["run", "suite.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    width = worst.sizes[0][0]
    assert f"'{worst.scheme}', width {width} at {worst.budget:g} FLOPs, would read the training" in line
    assert f"{text:,} tokens" in line
    assert "[isoflop] passes allows 4; set passes = " in line
    assert not list(Path().rglob("runs"))
    enough = float(line.partition("set passes = ")[2].partition(",")[0])
    assert enough - 0.1 < worst.tokens / text <= enough
    isoflop_suite("vanilla", "mod", passes=enough)
    assert planned().runs == 2 * 28


@pytest.mark.parametrize("words", [[], ["--rehearse"]], ids=["run", "rehearse"])
def test_more_passes_are_refused_at_each_depth(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    isoflop_suite("vanilla", "mod", layers=[2, 4])
    prepared()
    assert main(["run", "suite.toml", *words]) == 2
    assert "[isoflop] passes allows 4; set passes = " in capsys.readouterr().err


def test_more_passes_than_the_size_of_the_text_allows_are_refused_before_it_is_prepared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    isoflop_suite("vanilla", "mod")
    text = Path(str(load_suite("suite.toml").data.path))
    assert main(["plan", "suite.toml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the training text of at most {text.stat().st_size + 2:,} tokens" in line
    assert "times or more, and [isoflop] passes allows 4; set passes = " in line
    assert not Path("cache").exists()
