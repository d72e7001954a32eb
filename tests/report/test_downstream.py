"""Downstream scores in the report, from records with made-up figures."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.records.line import as_json
from modbench.records.record import read_record
from modbench.report.downstream import downstream_section
from modbench.report.markdown import Page, page
from modbench.report.suite import Suite, suite_of
from modbench.report.table import Table, to_csv

ROOT = Path(__file__).parents[2]


def row(value: float = 0.4, *, part_of: str = "arc_easy", **fields: Any) -> dict[str, Any]:
    """The row of a task with accuracy ``value``."""
    metric = {"value": value, "stderr": 0.01, "chance": 0.25, "untrained": 0.26}
    return {
        "part_of": part_of,
        "metrics": {"acc": {**metric, "higher_is_better": True}},
        "items": 2000,
        "few_shot": 5,
        "version": "1.0",
        "rule": "causal",
        "answer_bits_per_byte": {"value": 1.5, "stderr": 0.1, "untrained": 8.0},
        "answer_margin": None,
        "truncated": 0,
        "sha256": "ab" * 32,
        **fields,
    }


def section(board: Suite) -> Page:
    return page("downstream", downstream=downstream_section(board))


def lines_of(board: Suite) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(board.schemes))))


def test_a_record_with_scores_is_read_back_and_one_without_has_no_section(fakes: Any) -> None:
    result = fakes.make_record(downstream={"arc_easy": row()})
    read = [read_record(measurement.line()) for measurement in result.measurements]
    assert [list(one.result.downstream) for one in read] == [[], [], ["arc_easy"]]  # type: ignore[union-attr]
    assert as_json(result.downstream["arc_easy"]) == row()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "topk"},
        {"items": -1},
        {"metrics": {"acc": {"value": "0.4"}}},
        {"metrics": {"=acc": {}}},
        {"share": 1.0},
    ],
)
def test_a_section_of_another_form_is_refused(fakes: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="downstream"):
        fakes.make_record(downstream={"arc_easy": row() | wrong})


def test_the_table_has_value_error_chance_and_interval_of_each_task(fakes: Any) -> None:
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": row(0.4)}),
        *(
            fakes.make_record("mod", seed=seed, downstream={"arc_easy": row(0.3 + seed / 100)})
            for seed in range(3)
        ),
        fakes.make_record("other"),
    ]
    lines = {line["label"]: line for line in lines_of(suite_of(records))}
    vanilla, mod, other = lines["vanilla"], lines["mod"], lines["other"]
    assert float(vanilla["arc_easy:acc"]) == 0.4
    assert float(vanilla["arc_easy:acc_stderr"]) == 0.01
    assert float(vanilla["arc_easy:acc_chance"]) == 0.25
    assert float(vanilla["arc_easy:acc_untrained"]) == 0.26
    assert float(vanilla["arc_easy:acc_low"]) == pytest.approx(0.4 - 0.0196)  # over items
    assert vanilla["arc_easy:few_shot"] == "5"
    assert float(mod["arc_easy:acc"]) == pytest.approx(0.31)
    half = 4.3027 * 0.01 / 3**0.5  # over seeds, t with two degrees of freedom
    assert float(mod["arc_easy:acc_high"]) == pytest.approx(0.31 + half, rel=1e-4)
    assert other["arc_easy:acc"] == ""


def test_the_page_has_the_main_metric_of_each_task_with_its_interval_and_chance(fakes: Any) -> None:
    unlike = {"value": 0.9, "stderr": None, "chance": None, "untrained": None, "higher_is_better": True}
    scores = {
        "arc_easy": row() | {"metrics": {"a_norm": unlike} | row()["metrics"]},
        "mmlu": row(0.3, part_of="mmlu", sha256=None, answer_bits_per_byte=None),
        "mmlu_law": row(0.2, part_of="mmlu"),
    }
    asked = {"downstream": ["arc_easy", "mmlu"]}
    seeds = [
        fakes.make_record(
            "mod", seed=seed, downstream={"arc_easy": row(0.3 + seed / 100)}, measure=asked
        )
        for seed in range(3)
    ]
    records = [fakes.make_record("vanilla", downstream=scores, measure=asked), *seeds]
    table = section(suite_of(records)).parts[1]
    assert isinstance(table, Table)
    assert table.headings == ("task", "metric", "chance", "mod", "vanilla")
    assert [*table.rows] == [
        ("arc_easy", "acc", "0.250", "0.310 ± 0.025", "0.400 ± 0.020"),
        ("mmlu", "acc", "0.250", "-", "0.300 ± 0.020"),
        ("mmlu_law", "acc", "0.250", "-", "0.200 ± 0.020"),
    ]
    assert "Not comparable" not in section(suite_of(records)).to_markdown()


def test_scores_on_other_items_are_marked_as_not_comparable(fakes: Any) -> None:
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": row()}),
        fakes.make_record("mod", downstream={"arc_easy": row(items=10)}),
    ]
    text = section(suite_of(records)).to_markdown()
    assert "Not comparable, since items, examples or versions differ between columns: arc\\_easy" in (
        text.replace("arc_easy.", "arc\\_easy.")
    )


def test_of_isoflop_grids_each_scheme_is_shown_at_its_lowest_loss(make: Any) -> None:
    records = [
        make(f"{scheme}/w{width}", model_width=width, loss=loss, downstream={"arc_easy": row()})
        for scheme in ("vanilla", "mod")
        for width, loss in ((32, 5.0), (64, 4.0))
    ]
    table = section(suite_of(records)).parts[1]
    assert isinstance(table, Table)
    assert table.headings[-2:] == ("mod/w64", "vanilla/w64")


def test_the_name_of_a_task_may_hold_colons_and_start_that_of_another(fakes: Any) -> None:
    scores = {"arc": row(0.3, part_of="arc"), "arc:hard:v2": row(0.2, part_of="arc:hard:v2")}
    (line,) = lines_of(suite_of([fakes.make_record("mod", downstream=scores)]))
    assert (line["arc:acc"], line["arc:hard:v2:acc"]) == ("0.3", "0.2")
    assert line["arc:hard:v2:version"] == "1.0"
