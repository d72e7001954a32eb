"""Routed layers in a report: a remark on each that adds next to nothing, a table, and columns."""

import csv
import io
from dataclasses import replace

import pytest
from isoflop_made_up import records

from modbench.errors import UserError
from modbench.records.record import read_record
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.sweep import sweep_of
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.page import leaderboard_page

IDLE = [
    {"layer": 1, "added": 0.12, "gate_scale": 0.4},
    {"layer": 3, "added": 0.0035, "gate_scale": 0.01},
]
WORKING = [{"layer": 1, "added": 0.2, "gate_scale": 0.5}, {"layer": 3, "added": 0.02}]
REMARK = (
    "layer 3 adds 0.0035 of the norm of the residual stream, mean gate 0.01; below 0.02 is next to "
    "nothing"
)


def test_a_layer_that_adds_next_to_nothing_is_a_remark_in_table_and_page(fakes):
    records = [
        fakes.make_record("mod", layers=IDLE),
        fakes.make_record("mod_half", layers=WORKING),
        fakes.make_record("vanilla"),
    ]
    board = Leaderboard.of(records)
    assert {entry.row.label: entry.note for entry in board.entries} == {
        "mod": REMARK,
        "mod_half": "",
        "vanilla": "",
    }
    page = leaderboard_page(board).to_markdown()
    assert f"- **mod**: {REMARK}\n" in page
    assert "| scheme | layer 1 adds | layer 1 gate | layer 3 adds | layer 3 gate |" in page
    assert "| mod | 0.12 | 0.4 | 0.0035 | 0.01 |" in page
    assert "| mod_half | 0.2 | 0.5 | 0.02 | - |" in page
    assert "| † | mod |" in page


def test_the_remark_gives_the_worst_seed_and_how_many_there_are(fakes):
    layers = [[{"layer": 3, "added": added}] for added in (0.3, 0.019, 0.004)]
    records = [fakes.make_record("mod", seed=seed, layers=one) for seed, one in enumerate(layers)]
    (entry,) = Leaderboard.of(records).entries
    assert entry.note == (
        "layer 3 adds 0.004 of the norm of the residual stream; below 0.02 is next to nothing, in 2 of "
        "3 seeds"
    )


def test_the_csv_has_a_column_for_each_layer_of_any_row(fakes):
    records = [
        *(
            fakes.make_record("mod", seed=seed, layers=layers)
            for seed, layers in enumerate((IDLE, WORKING))
        ),
        fakes.make_record("vanilla"),
    ]
    rows = {
        row["label"]: row
        for row in csv.DictReader(io.StringIO(Leaderboard.of(records).table().to_csv()))
    }
    assert [name for name in rows["mod"] if "_layer_" in name] == [
        "added_layer_1",
        "gate_scale_layer_1",
        "added_layer_3",
        "gate_scale_layer_3",
    ]
    assert float(rows["mod"]["added_layer_1"]) == pytest.approx(0.16)
    assert float(rows["mod"]["gate_scale_layer_3"]) == 0.01  # of the seed that has one
    assert rows["vanilla"]["added_layer_1"] == ""


def test_a_mean_gate_without_layers_is_a_column_and_no_table(fakes):
    """As records have it that are of an older modbench, and converted."""
    record = fakes.make_record("mod", metrics={"gate_scale": 0.25})
    assert record.layers is None
    board = Leaderboard.of([record])
    (row,) = csv.DictReader(io.StringIO(board.table().to_csv()))
    assert row["gate_scale"] == "0.25"
    assert not any("_layer_" in name for name in row)
    assert "Routed layers" not in leaderboard_page(board).to_markdown()


def test_layers_survive_the_line_and_are_checked(fakes):
    heldout = fakes.make_record("mod", layers=IDLE).measurements[0]
    assert read_record(heldout.line()).result["layers"] == IDLE
    with pytest.raises(UserError, match=r"layers\[0\]\.added is 'much'"):
        fakes.make_record("mod", layers=[{"layer": 1, "added": "much"}])


def test_an_isoflop_page_counts_the_runs_with_an_idle_layer(make):
    found = records(make)
    assert "next to nothing" not in isoflop_page(sweep_of(found, Leaderboard.of(found))).to_markdown()
    places = [place for place, one in enumerate(found) if one.scheme == "mod"]
    for place in places[:2]:
        heldout, *rest = found[place].measurements
        heldout = replace(heldout, result=heldout.result | {"layers": IDLE})
        found[place] = replace(found[place], measurements=(heldout, *rest))
    page = isoflop_page(sweep_of(found, Leaderboard.of(found))).to_markdown()
    assert f"- In 2 of {len(places)} runs of mod a routed layer adds next to nothing; the column" in page
