"""Downstream scores in the report, from records with made-up figures."""

import csv
import io
from typing import Any

import pytest

from modbench.errors import UserError
from modbench.report.downstream_figure import downstream_figure
from modbench.report.downstream_page import downstream_section
from modbench.report.leaderboard import Leaderboard
from modbench.report.page import write_report
from modbench.report.record import read_record


def entry(value: float = 0.4, *, part_of: str = "arc_easy", **fields: Any) -> dict[str, Any]:
    """The entry of a task with accuracy ``value``."""
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


def lines_of(board: Leaderboard) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(board.csv())))


def test_a_record_with_scores_is_read_back_and_one_without_has_no_section(fakes: Any) -> None:
    record = fakes.make_record(downstream={"arc_easy": entry()})
    assert read_record(record.line()).downstream == {"arc_easy": entry()}  # type: ignore[union-attr]
    assert "downstream" not in fakes.make_record().line().replace('"downstream":["modbench', "")


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
        fakes.make_record(downstream={"arc_easy": entry() | wrong})


def test_the_table_has_value_error_chance_and_interval_of_each_task(fakes: Any) -> None:
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": entry(0.4)}),
        *(
            fakes.make_record("mod", seed=seed, downstream={"arc_easy": entry(0.3 + seed / 100)})
            for seed in range(3)
        ),
        fakes.make_record("other"),
    ]
    lines = {line["label"]: line for line in lines_of(Leaderboard.of(records))}
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
        "arc_easy": entry(),
        "mmlu": entry(0.3, part_of="mmlu", sha256=None, answer_bits_per_byte=None),
        "mmlu_law": entry(0.2, part_of="mmlu"),
    }
    asked = {"downstream": ["arc_easy", "mmlu"]}
    records = [fakes.make_record(name, downstream=scores, measure=asked) for name in ("vanilla", "mod")]
    text = "\n".join(downstream_section(Leaderboard.of(records)))
    assert "| task | metric | items | few-shot | version | chance | mod | vanilla |" in text
    shown = "0.400 ± 0.020 (0.260)"
    assert f"| arc_easy | acc | 2,000 | 5 | 1.0 | 0.250 | {shown} | {shown} |" in text
    assert text.index("| arc_easy |") < text.index("Group mmlu:") < text.index("| mmlu_law |")
    assert "Not comparable" not in text
    assert "2.000 M / 1.900 M" in text


def test_scores_on_other_items_are_marked_as_not_comparable(fakes: Any) -> None:
    records = [
        fakes.make_record("vanilla", downstream={"arc_easy": entry()}),
        fakes.make_record("mod", downstream={"arc_easy": entry(items=10)}),
    ]
    text = "\n".join(downstream_section(Leaderboard.of(records)))
    assert "Not comparable, since items, examples or versions differ between columns: arc\\_easy" in (
        text.replace("arc_easy.", "arc\\_easy.")
    )


def test_the_figure_is_drawn_only_if_something_was_scored(fakes: Any, tmp_path: Any) -> None:
    assert downstream_figure(Leaderboard.of([fakes.make_record()])) == {}
    assert downstream_section(Leaderboard.of([fakes.make_record()])) == []
    folder = fakes.store(tmp_path, [fakes.make_record(downstream={"arc_easy": entry()})])
    assert {"downstream.png", "downstream.svg"} <= {path.name for path in write_report(folder)}
    assert "(downstream.png)" in (folder / "leaderboard.md").read_text()
    assert "chance" in (folder / "downstream.svg").read_text()


def test_of_isoflop_grids_each_scheme_is_shown_at_its_lowest_loss(make: Any) -> None:
    records = [
        make(f"{scheme}/w{width}", model_width=width, loss=loss, downstream={"arc_easy": entry()})
        for scheme in ("vanilla", "mod")
        for width, loss in ((32, 5.0), (64, 4.0))
    ]
    (head, *_) = downstream_section(Leaderboard.of(records))[1].splitlines()
    assert [name.strip() for name in head.split("|")[-3:-1]] == ["mod/w64", "vanilla/w64"]
