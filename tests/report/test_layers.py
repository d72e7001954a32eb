"""Routed layers in a report: a remark on each that adds next to nothing or has gates that hardly vary, a
table, and columns."""

import csv
import io

import pytest

from modbench.errors import UserError
from modbench.records.line import as_json
from modbench.records.record import read_record
from modbench.report.leaderboard import leaderboard_page
from modbench.report.suite import suite_of
from modbench.report.table import to_csv

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
    board = suite_of(records)
    assert {row["row"]: row["note"] for row in board.rows} == {
        "mod": REMARK,
        "mod_half": None,
        "vanilla": None,
    }
    page = leaderboard_page(board).to_markdown()
    assert f"- **mod**: {REMARK}\n" in page
    assert "| scheme | layer 1 adds | layer 1 gate | layer 3 adds | layer 3 gate |" in page
    assert "| mod | 0.12 | 0.4 | 0.0035 | 0.01 |" in page
    assert "| mod_half | 0.2 | 0.5 | 0.02 | - |" in page
    assert "| † | mod |" in page


def test_a_layer_that_selects_no_token_says_so(fakes):
    (row,) = suite_of([fakes.make_record("mod", layers=[{"layer": 1, "added": 0.0}])]).rows
    assert row["note"] == "layer 1 selects no validation token under the causal rule"


def with_gates(fakes, *gates, scale=0.5):
    """A routing in which layers 1, 3 ... have the histograms ``gates``, and what they add."""
    numbers = tuple(range(1, 2 * len(gates), 2))
    routing = fakes.make_routing(numbers)
    for entry, histogram in zip(routing["causal"]["depth"], gates, strict=True):
        del entry["gates"]
        if histogram is not None:
            exponent, first, counts = histogram
            entry["gates"] = {"exponent": exponent, "first": first, "all": counts, "selected": counts}
    layers = [{"layer": number, "added": 0.2, "gate_scale": scale} for number in numbers]
    return {"routing": routing, "layers": layers}


#: 98 % from 0.5 to 0.53, with a token at 1; and spread over 0.5 to 1.
EVEN, SPREAD = (-5, 16, [995, *[0] * 14, 5]), (-5, 16, [60] * 16)


@pytest.mark.parametrize(
    ("gates", "scale", "remark"),
    [
        ((EVEN, SPREAD), 0.5, "gates of layer 1 hardly vary: 98 % lie from 0.5 to 0.531"),
        ((SPREAD, SPREAD), 0.5, ""),
        ((SPREAD, None), 0.7, "gates of layer 3 do not vary: their magnitude is 0.7"),
        ((None,), 1, ""),  # no gate
        (
            ((-20, 7, [500, 500]),),
            7e-6,
            "gates of layer 1 hardly vary: 98 % lie from 6.69e-06 to 8.56e-06",
        ),
        (((0, -3, [30, 40, 30]),), 1, ""),
    ],
)
def test_gates_that_hardly_vary_are_a_remark(fakes, gates, scale, remark):
    board = suite_of([fakes.make_record("mod", **with_gates(fakes, *gates, scale=scale))])
    assert [row["note"] for row in board.rows] == [remark or None]
    assert (f"- **mod**: {remark}\n" in leaderboard_page(board).to_markdown()) == bool(remark)


def test_a_remark_on_gates_counts_seeds(fakes):
    seeds = [
        fakes.make_record("mod", seed=seed, **with_gates(fakes, gates))
        for seed, gates in enumerate((EVEN, SPREAD, EVEN))
    ]
    (row,) = suite_of(seeds).rows
    assert row["note"].endswith("to 0.531, in 2 of 3 seeds")


def test_the_csv_has_a_column_for_each_layer_of_any_row(fakes):
    records = [
        *(
            fakes.make_record("mod", seed=seed, layers=layers)
            for seed, layers in enumerate((IDLE, WORKING))
        ),
        fakes.make_record("vanilla"),
    ]
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(to_csv(suite_of(records).schemes)))}
    assert [name for name in rows["mod"] if "_layer_" in name] == [
        "added_layer_1",
        "gate_scale_layer_1",
        "added_layer_3",
        "gate_scale_layer_3",
    ]
    assert float(rows["mod"]["added_layer_1"]) == pytest.approx(0.16)
    assert float(rows["mod"]["gate_scale_layer_3"]) == 0.01  # of the seed that has one
    assert rows["vanilla"]["added_layer_1"] == ""


def test_layers_survive_the_line_and_are_checked(fakes):
    heldout = fakes.make_record("mod", layers=IDLE).measurements[0]
    assert [*map(as_json, read_record(heldout.line()).result.layers)] == IDLE
    with pytest.raises(UserError, match=r"layers\[0\]\.added is 'much'"):
        fakes.make_record("mod", layers=[{"layer": 1, "added": "much"}])
