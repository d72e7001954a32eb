"""The frame, table and figures of routing over the course of training, of planted decisions."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modbench.records.traces import Rules, Traces, packed
from modbench.report.plot_style import GREY, drawn_files
from modbench.report.routing.course import course_figures, course_frame, course_section

TOKENS = 64
IDS_N = np.arange(TOKENS) % 4
SHARED: dict[str, Any] = {"windows": 2, "sequence": 32, "end": 9, "first": [0, 1], "changes": []}
SHARED |= {"ids": packed(IDS_N, "<u4"), "losses": packed(np.ones(TOKENS), "<f2")}


def point(share: float, chosen_NE: np.ndarray, **more: Any) -> dict[str, Any]:
    layer = {
        "layer": 1,
        "kind": "experts",
        "experts": 4,
        "chosen": packed(chosen_NE),
        "gate": (0.5, 0.1),
    }
    return {"share": share, "layers": [layer], **more}


def result(seed: int, turned: int, rules: Rules | None) -> Any:
    """Experts by token id; half of the tokens take another one at first."""
    end_NE = np.eye(4, dtype=bool)[(IDS_N + turned) % 4]
    early_NE = np.where((np.arange(TOKENS) < 32)[:, None], end_NE, np.roll(end_NE, 1, axis=1))
    points = [point(0, early_NE, series={"heat": 1.0 + seed}), point(1, end_NE)]
    traces = Traces.model_validate({**SHARED, "points": points})
    return SimpleNamespace(status="ok", scheme="s", seed=seed, traces=traces, rules=rules)


RULES = {
    "layers": [{"layer": 1, "kind": "experts", "auc": {"position": 0.5, "id": 1.0}}],
    "losses": {"own": 2.0, "random": 3.0, "id": 2.0},
    "windows": 1,
}
RESULTS = [result(0, 0, Rules.model_validate(RULES)), result(1, 3, Rules.model_validate(RULES))]


def values(metric: str, results: Any = RESULTS) -> list[float]:
    course = course_frame(results, ["row"] * len(results))
    return course[course["metric"] == metric]["value"].astype(float).tolist()


def test_figures_are_those_of_the_planted_decisions() -> None:
    assert values("saturation") == [0.5, 1, 0.5, 1]
    assert values("agreement_seeds") == [1, 1]  # other numbers of the same experts
    assert values("specialisation_id") == pytest.approx([1, 1])
    assert values("load_entropy") == pytest.approx([1, 1, 1, 1])
    assert values("unused_experts") == [0, 0, 0, 0]
    assert values("series_heat") == [1, 2]
    assert values("agreement_seeds", RESULTS[:1]) == []  # one seed has nothing to agree with


def test_table_has_a_line_per_scheme_with_intervals_and_says_what_is_missing() -> None:
    rows = ["row", "row"]
    section = course_section(course_frame(RESULTS, rows), RESULTS, rows)
    assert dict(zip(section["table"].headings, section["table"].rows[0], strict=True)) == {
        "scheme": "row",
        "decides": "experts",
        "saturation at 0": "0.500 ± 0.000",
        "AUC: position": "0.500 ± 0.000",
        "AUC: token id": "1.000 ± 0.000",
        "loss: own": "2.0000 ± 0.0000",
        "loss: random": "3.0000 ± 0.0000",
        "loss: token id": "2.0000 ± 0.0000",
    }
    assert (section["alone"], section["waiting"]) == (["row"], [])
    waits = [result(0, 0, None)]
    section = course_section(course_frame(waits, ["row"]), waits, ["row"])
    assert (section["alone"], section["waiting"]) == ([], ["row"])


def test_nothing_is_shown_where_nothing_is_routed() -> None:
    dense = result(0, 0, None)
    dense.traces = Traces.model_validate({**SHARED, "points": [{"share": 1, "layers": []}]})
    lost = SimpleNamespace(status="failed", traces=RESULTS[0].traces, scheme="s", seed=2, rules=None)
    course = course_frame([dense, lost], ["dense", "lost"])
    assert course_section(course, [dense, lost], ["dense", "lost"]) == {"table": None}
    assert drawn_files(course_figures(course, {})) == {}


@pytest.mark.figures
def test_figures_are_drawn() -> None:
    drawn = drawn_files(course_figures(course_frame(RESULTS, ["row", "row"]), {"s": GREY}))
    assert drawn.keys() == {f"routing_{of}.svg" for of in ("saturation", "predictors", "series")}
    assert b"heat" in drawn["routing_series.svg"]
