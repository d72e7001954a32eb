"""Downstream scores in the report, from records with made-up figures."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.records.line import as_json
from modbench.records.record import read_record
from modbench.report.downstream.page import downstream_section
from modbench.report.leaderboard.board import Board, board_of
from modbench.report.markdown import Page, page
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
        "tokens": 90_000,
        "seconds_per_token": 2e-5,
        "nominal_flops_per_token": 2_000_000.0,
        "realised_flops_per_token": 1_900_000.0,
        "share_routed": None,
        "sha256": "ab" * 32,
        **fields,
    }


def items(*correct: int, bits: float = 1.0) -> dict[str, Any]:
    """Scores of single items, with ``bits`` per byte each."""
    count = len(correct)
    return {"correct": list(correct), "bits_per_byte": [bits] * count, "margin": [None] * count}


def section(board: Board) -> Page:
    return page("downstream", downstream=downstream_section(board))


def lines_of(board: Board) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(board.frame()))))


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
    lines = {line["label"]: line for line in lines_of(board_of(records))}
    vanilla, mod, other = lines["vanilla"], lines["mod"], lines["other"]
    assert float(vanilla["arc_easy:acc"]) == 0.4
    assert float(vanilla["arc_easy:acc_stderr"]) == 0.01
    assert float(vanilla["arc_easy:acc_chance"]) == 0.25
    assert float(vanilla["arc_easy:acc_untrained"]) == 0.26
    assert float(vanilla["arc_easy:acc_low"]) == pytest.approx(0.4 - 0.0196)  # over items
    assert float(vanilla["arc_easy:realised_flops_per_token"]) == 1_900_000
    assert vanilla["arc_easy:few_shot"] == "5"
    assert float(mod["arc_easy:acc"]) == pytest.approx(0.31)
    half = 4.3027 * 0.01 / 3**0.5  # over seeds, t with two degrees of freedom
    assert float(mod["arc_easy:acc_high"]) == pytest.approx(0.31 + half, rel=1e-4)
    assert other["arc_easy:acc"] == ""


def test_the_page_has_a_table_per_group_with_intervals_and_chance(fakes: Any) -> None:
    scores = {
        "arc_easy": row(),
        "mmlu": row(0.3, part_of="mmlu", sha256=None, answer_bits_per_byte=None),
        "mmlu_law": row(0.2, part_of="mmlu"),
    }
    asked = {"downstream": ["arc_easy", "mmlu"]}
    records = [fakes.make_record(name, downstream=scores, measure=asked) for name in ("vanilla", "mod")]
    text = section(board_of(records)).to_markdown()
    assert "| task | metric | items | few-shot | version | chance | mod | vanilla |" in text
    shown = "0.400 ± 0.020 (0.260)"
    assert f"| arc_easy | acc | 2,000 | 5 | 1.0 | 0.250 | {shown} | {shown} |" in text
    assert text.index("| arc_easy |") < text.index("Group mmlu:") < text.index("| mmlu_law |")
    assert "Not comparable" not in text
    assert "2.000 M / 1.900 M" in text


def test_scores_on_other_items_are_marked_as_not_comparable(fakes: Any) -> None:
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": row()}),
        fakes.make_record("mod", downstream={"arc_easy": row(items=10)}),
    ]
    text = section(board_of(records)).to_markdown()
    assert "Not comparable, since items, examples or versions differ between columns: arc\\_easy" in (
        text.replace("arc_easy.", "arc\\_easy.")
    )


def test_of_isoflop_grids_each_scheme_is_shown_at_its_lowest_loss(make: Any) -> None:
    records = [
        make(f"{scheme}/w{width}", model_width=width, loss=loss, downstream={"arc_easy": row()})
        for scheme in ("vanilla", "mod")
        for width, loss in ((32, 5.0), (64, 4.0))
    ]
    table = section(board_of(records)).parts[1]
    assert isinstance(table, Table)
    assert table.headings[-2:] == ("mod/w64", "vanilla/w64")


def test_schemes_are_compared_with_the_dense_one_item_by_item(fakes: Any) -> None:
    right = [1, 1, 0, 0] * 25
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": row(by_item=items(*right))}),
        # Right on the same items and on half of the others.
        fakes.make_record(
            "mod", downstream={"arc_easy": row(by_item=items(*[1, 1, 1, 0] * 25, bits=0.75))}
        ),
        fakes.make_record("same", downstream={"arc_easy": row(by_item=items(*right))}),
        fakes.make_record("old", downstream={"arc_easy": row()}),
    ]
    parts = section(board_of(records)).parts
    [table] = [part for part in parts if isinstance(part, Table) and part.headings[1] == "score"]
    assert table.headings == ("task", "score", "mod", "old", "same")
    [accuracy, bits] = table.rows
    assert accuracy[:2] == ["arc_easy", "accuracy"]
    assert str(accuracy[2]).startswith("0.250 (0.1")
    assert accuracy[3:] == ["-", "0.000 (0.000 to 0.000)"]
    assert bits[1:3] == ["bits/byte of the right answer", "-0.250 (-0.250 to -0.250)"]


def test_schemes_scored_on_other_items_are_not_compared_by_item(fakes: Any) -> None:
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": row(by_item=items(1, 0))}),
        fakes.make_record("mod", downstream={"arc_easy": row(by_item=items(1, 0), sha256="cd" * 32)}),
    ]
    assert "Difference from" not in section(board_of(records)).to_markdown()


def snippet(page: str, word: str) -> str:
    """The Python block of ``page`` that contains ``word``."""
    text = (ROOT / "docs" / page).read_text()
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if word in one)
    return str(code)


def test_the_comparison_of_the_page_on_evaluation_runs(
    fakes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    margins = {"mod": [1.0, 2.0, None], "token_choice": [0.5, 1.5, 1.0]}
    records = [
        fakes.make_record(label, downstream={"arc_easy": row(by_item=items(1, 1, 1) | {"margin": of})})
        for label, of in margins.items()
    ]
    fakes.store(tmp_path / "my-results" / "mine", records)
    exec(snippet("evaluation.md", "read_suite"), {})
    assert capsys.readouterr().out == "0.5 (0.5, 0.5)\n"


def test_the_statistics_of_the_page_on_tasks_run() -> None:
    names: dict[str, Any] = {"margins_of_mod": [1.0, 2.0, 3.0], "margins_of_dense": [1.0, 1.0, 1.0]}
    exec(snippet("tasks.md", "mean_with_stderr"), names)
    assert names["mean"] == 2.0


def test_the_name_of_a_task_may_hold_colons_and_start_that_of_another(fakes: Any) -> None:
    scores = {"arc": row(0.3, part_of="arc"), "arc:hard:v2": row(0.2, part_of="arc:hard:v2")}
    (line,) = lines_of(board_of([fakes.make_record("mod", downstream=scores)]))
    assert (line["arc:acc"], line["arc:hard:v2:acc"]) == ("0.3", "0.2")
    assert line["arc:hard:v2:version"] == "1.0"
