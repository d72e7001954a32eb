import io
import json

import pandas as pd
import pytest
from made_up_records import replace
from timings_made_up import times_of

from modbench.records.line import as_json, key_of
from modbench.records.metrics import METRICS
from modbench.report.leaderboard import leaderboard_page, made_by
from modbench.report.runs import METRIC_COLUMNS
from modbench.report.suite import Suite, suite_of
from modbench.report.table import to_csv


def _table(board: Suite) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(to_csv(board.schemes)))


def _seeds(fakes, label, losses, **changes):
    return [
        fakes.make_record(label, seed=seed, loss=loss, **changes) for seed, loss in enumerate(losses)
    ]


def test_one_seed_gives_an_order_and_no_group(six):
    table = _table(suite_of(six))
    assert list(table["label"]) == [
        "token_choice",
        "mode_staged",
        "expert_choice",
        "mod",
        "mode_integrated",
        "vanilla",
    ]
    assert list(table["position"]) == [1, 2, 3, 4, 5, 6]
    assert not {"group", "minus_dense_verdict"} & {*table}  # empty in all rows
    assert table.set_index("label").loc["mod", "minus_dense"] == pytest.approx(-0.04)


def test_rows_that_noise_does_not_separate_from_the_best_are_a_group(fakes):
    records = [
        *_seeds(fakes, "a", [4.00, 4.03, 4.04]),
        *_seeds(fakes, "b", [4.01, 4.02, 4.06]),
        *_seeds(fakes, "c", [4.50, 4.52, 4.54]),
    ]
    table = _table(suite_of(records)).set_index("label")
    assert dict(table["position"]) == {"a": 1, "b": 2, "c": 3}
    assert table["group"].to_dict() | {"c": ""} == {"a": "best", "b": "not separable", "c": ""}
    assert pd.isna(table.loc["c", "group"])
    assert (table["heldout_loss_high"] > table["heldout_loss"]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"budget": 5}},
        {"train": {"sequence": 64}},
        {"data": {"sha256": "cd" * 32}},
    ],
)
def test_unequal_budget_or_data_is_another_comparison(fakes, change):
    board = suite_of([fakes.make_record("a", loss=4.0), fakes.make_record("b", loss=5.0, **change)])
    assert [row["position"] for row in board.rows] == [1, 1]
    assert len(board.comparisons) == 2


def test_an_unequal_text_or_tokenizer_is_another_comparison(fakes):
    a, b = fakes.make_record("a", loss=4.0), fakes.make_record("b", loss=5.0)
    run = b.record.run | {"data": b.record.run["data"] | {"tokenizer": "bytes"}}
    other = replace(b, record=replace(b.record, run=run, key=key_of(run)))
    board = suite_of([a, other])
    assert [row["position"] for row in board.rows] == [1, 1]
    assert len(board.comparisons) == 2


def test_an_unequal_learning_rate_is_the_same_comparison(fakes):
    board = suite_of([fakes.make_record("a"), fakes.make_record("b", train={"learning_rate": 0.001})])
    assert len(board.comparisons) == 1


@pytest.mark.parametrize("probe", [1, 2, 3, 9])
def test_a_router_that_fails_a_ranking_probe_is_listed_unranked_with_the_reason(fakes, probe):
    records = [fakes.make_record("leaky", loss=1.0, failed_probes=(probe,)), fakes.make_record("fair")]
    fair, leaky = suite_of(records).rows
    assert (fair["row"], fair["position"]) == ("fair", 1)
    assert leaky["position"] is None
    assert leaky["note"].startswith(f"failed audit probe {probe} ")
    assert "moved by 0.7" in leaky["note"]


def test_what_an_audit_could_not_check_is_told_apart_from_what_it_had_not_to_ask(fakes):
    record = fakes.make_record("a")
    verdicts = {6: "unchecked", 7: "unchecked", 8: "not asked"}
    audit = [
        *record.audit,
        *(
            as_json(record.audit[0]) | {"probe": n, "verdict": v, "ranks": False}
            for n, v in verdicts.items()
        ),
    ]
    (row,) = suite_of([fakes.make_record("a", audit=audit)]).rows
    assert row["position"] == 1
    assert row["audit"] == "passed 5, unchecked 2, n/a 1"


def test_a_run_without_its_audit_is_not_ranked(fakes):
    (row,) = suite_of([fakes.make_record("a", audit=[])]).rows
    assert row["position"] is None
    assert row["note"] == "not run of the audit: probe 1, 2, 3, 9; add audit to [measure] steps"


@pytest.mark.parametrize("verdict", ["unchecked", "not asked"])
def test_a_ranking_probe_that_could_not_be_asked_in_one_run_is_none_that_was_passed(fakes, verdict):
    whole = fakes.make_record("a")
    audit = [p.model_copy(update={"verdict": verdict}) if p.probe == 3 else p for p in whole.audit]
    (row,) = suite_of([whole, fakes.make_record("a", seed=1, audit=audit)]).rows
    assert (row["position"], row["note"]) == (
        None,
        "not run of the audit: probe 3; add audit to [measure] steps",
    )


def test_a_probe_that_a_record_says_keeps_out_of_the_ranking_does(fakes):
    """Whatever its number is: a later modbench may have more of them."""
    record = fakes.make_record("a", failed_probes=(5,))
    audit = [as_json(probe) | {"ranks": True} for probe in record.audit]
    (row,) = suite_of([fakes.make_record("a", audit=audit)]).rows
    assert (row["position"], row["note"]) == (None, "failed audit probe 5 bypass (moved by 0.7)")


@pytest.mark.parametrize("probe", [1, 2, 3, 9])
def test_a_ranking_probe_keeps_out_of_the_ranking_whatever_its_record_says(fakes, probe):
    record = fakes.make_record("a", failed_probes=(probe,))
    audit = [as_json(one) | {"ranks": False} for one in record.audit]
    (row,) = suite_of([fakes.make_record("a", audit=audit)]).rows
    assert row["position"] is None
    assert row["note"].startswith(f"failed audit probe {probe} ")


@pytest.mark.parametrize("status", ["failed", "oom", "diverged"])
def test_what_did_not_finish_is_listed_with_its_error(fakes, status):
    table = _table(suite_of([fakes.make_record("a"), fakes.make_record("b", status=status)]))
    row = table.set_index("label").loc["b"]
    assert row["status"] == status
    assert "the loss is not finite at step 7" in row["note"]
    assert pd.isna(row["position"])


def test_a_row_with_a_lost_seed_is_not_ranked_by_the_rest(fakes):
    records = [
        *_seeds(fakes, "whole", [4.5, 4.6]),
        fakes.make_record("part", seed=0, loss=4.0),
        fakes.make_record("part", seed=1, status="diverged"),
    ]
    ranks = {row["row"]: row["position"] for row in suite_of(records).rows}
    assert ranks == {"whole": 1, "part": None}


def test_one_seed_among_rows_of_several_has_the_noise_of_those(fakes):
    records = [
        *_seeds(fakes, "vanilla", [4.5, 4.6, 4.55, 4.52, 4.58, 4.54, 4.55, 4.56, 4.53]),
        *_seeds(fakes, "mod", [4.51, 4.605, 4.54, 4.53, 4.57, 4.55, 4.56, 4.55, 4.54]),
        fakes.make_record("single", loss=4.0),
    ]
    board = suite_of(records)
    pair = board.pairs_of("dense")[0]
    assert (pair["scheme"], pair["pairs"]) == ("single", 1)
    assert pair["value"] == pytest.approx(-0.5)
    assert (pair["verdict"], board.rows[1]["group"]) == ("better", None)


def test_the_csv_has_the_interval_and_how_many_seeds_finished(fakes):
    records = [*_seeds(fakes, "a", [4.0, 4.2]), fakes.make_record("a", seed=2, status="diverged")]
    line = _table(suite_of(records)).loc[0]
    assert (line["seeds"], line["budget"]) == (2, 10**12)
    assert line["heldout_loss_low"] < line["heldout_loss"] == 4.1 < line["heldout_loss_high"]


def test_figures_reach_the_csv_with_nine_digits_and_whole_numbers_stay_whole(fakes):
    records = [
        fakes.make_record("a", loss=3.123456789123, metrics={"train_flops": 2**60 + 1}),
        fakes.make_record("b", status="oom"),
    ]
    board = suite_of(records, times=times_of(*records))
    frame = pd.read_csv(io.StringIO(to_csv(board.schemes)), dtype=str).set_index("label")
    assert frame.loc["a", "heldout_loss"] == "3.12345679"
    assert frame.loc["a", "train_flops"] == str(2**60 + 1)
    assert frame.loc["a", "train_step_seconds_stable"] == "True"


def test_the_columns_are_fixed_and_lead_back_to_the_records(fakes):
    records = _seeds(fakes, "a", [4.0, 5.0], options={"capacity": 0.5})
    table = _table(suite_of(records))
    assert list(table.columns)[:3] == [
        "comparison",
        "position",
        "label",
    ]  # a column of empty cells is not written
    assert {*METRIC_COLUMNS} & {*suite_of(records).schemes} == {*METRIC_COLUMNS} - {
        name for name in METRIC_COLUMNS if METRICS[name].kind == "timed"
    }
    assert table.loc[0, "records"].split() == [record.key for record in records]
    assert json.loads(table.loc[0, "options"]) == {"capacity": 0.5}


def test_foreign_text_in_the_csv_comes_back_whole_and_is_no_formula(fakes):
    record = fakes.make_record(status="failed", error='=1+1,"b"\nc;\tü')
    note = _table(suite_of([record])).loc[0, "note"]
    assert note == 'seed 0 failed: =1+1,"b"\nc;\tü'


def test_a_row_is_not_ranked_by_a_part_of_its_seeds(fakes):
    lacking = {"heldout_loss": None}
    few = [fakes.make_record("mod", seed=seed, metrics=lacking if seed else {}) for seed in range(3)]
    entries = suite_of([*few, *_seeds(fakes, "vanilla", [5.0, 5.1, 5.2])]).rows
    assert [(row["row"], row["position"]) for row in entries] == [("vanilla", 1), ("mod", None)]
    assert entries[1]["note"] == "heldout_loss was not measured in all seeds"


def test_an_installed_package_is_named_by_its_version_alone():
    installed = {"version": "0.1.0", "commit": None, "dirty": None}
    assert made_by(installed) == "modbench 0.1.0"
    assert (
        made_by(installed | {"commit": "abc", "dirty": True})
        == "modbench 0.1.0, commit abc with local changes"
    )


def test_the_page_says_how_many_seeds_rows_have_and_which_probes_no_audit_ran(fakes):
    pilot, rows = _seeds(fakes, "pilot", [5, 6]), _seeds(fakes, "mod", [5, 6, 7])
    text = leaderboard_page(suite_of([*pilot, *rows]), ()).to_markdown()
    assert "and 2 to 3 seeds a row." in text
    assert (
        "records lack: 4 capacity, 6 unit gate, 7 order and position, 8 gradient, 10 state, 11 "
        "saving, 12 derivative." in text
    )
    assert "and 2 seeds a row, too few" in leaderboard_page(suite_of(pilot), ()).to_markdown()
