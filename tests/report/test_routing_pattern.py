"""The routing pattern of a passage, on plainly made-up routings."""

from typing import Any

import pytest

from modbench.records.result import Result
from modbench.report.leaderboard.board import board_of
from modbench.report.plot_style import drawn_files, look
from modbench.report.routing.cases import RoutingCase, cases_of_board
from modbench.report.routing.pattern import (
    POSITIONS,
    differing,
    pattern_figure,
    shares,
    token_labels,
)

pytestmark = pytest.mark.figures


def passage(
    causal: dict[int, str] | None = None,
    topk: dict[int, str] | None = None,
    *,
    texts: list[str] | None = None,
    gates: list[float] | None = None,
    experts: dict[int, list[int]] | None = None,
) -> dict[str, Any]:
    """The routing of a passage by layer; both rules select the same unless ``topk`` is given."""
    causal, experts = causal or {}, experts or {}
    tokens = len(next(iter([*causal.values(), *experts.values()])))
    weights = {"gates": gates} if gates else {}
    return {
        "texts": texts or [f"t{place}" for place in range(tokens)],
        "causal": [{"layer": layer, "selected": mask} | weights for layer, mask in causal.items()],
        "topk": [{"layer": layer, "selected": mask} for layer, mask in (topk or causal).items()],
        "experts": [{"layer": layer, "first": first} for layer, first in experts.items()],
    }


def record(fakes: Any, label: str, found: dict[str, Any] | None = None, **fields: Any) -> Result:
    routing = fakes.make_routing((1, 3)) | ({"passage": found} if found else {})
    made: Result = fakes.make_record(label, routing=routing, **fields)
    return made


def drawn(draw: Any, *records: Result) -> Any:
    with look():
        return draw([RoutingCase(record.label, record) for record in records])


def bars_of(axes: Any) -> list[list[tuple[int, int]]]:
    """(first token, tokens) of the bars of each collection of a panel."""
    every = [[path.vertices[:, 0] for path in bars.get_paths()] for bars in axes.collections]
    return [[(round(x.min() + 0.5), round(x.max() - x.min())) for x in of] for of in every]


def test_bars_stand_where_a_layer_selects_and_dense_layers_are_full(fakes: Any) -> None:
    (axes,) = drawn(pattern_figure, record(fakes, "mod", passage({1: "01100", 3: "00001"}))).axes
    dense, skipped = [(0, 5)], [(0, 5)]
    selected = [[(1, 1), (2, 1)], [(4, 1)]]
    assert bars_of(axes) == [dense, skipped, selected[0], dense, skipped, selected[1]]
    heights = [bars.get_paths()[0].vertices[:, 1].mean() for bars in axes.collections]
    assert heights == pytest.approx([0, 1, 1, 2, 3, 3], abs=0.1)  # layer 0 at the bottom


def test_dots_mark_where_the_training_rule_differs(fakes: Any) -> None:
    case = RoutingCase("mod", record(fakes, "mod", passage({1: "01100"}, {1: "01010"})))
    assert [*differing(case, range(5))] == [(1, 2, True), (1, 3, False)]
    assert shares(case) == "selected: 40.0 %, training rule 40.0 %"
    (axes,) = drawn(pattern_figure, case.record).axes
    assert len(axes.lines) == 2
    same = RoutingCase("mod", record(fakes, "mod", passage({1: "01100"})))
    assert not [*differing(same, range(5))]


def test_the_first_tokens_of_a_long_passage_are_drawn(fakes: Any) -> None:
    texts = [f"w{position}" for position in range(POSITIONS + 10)]
    found = passage({1: "10" * (len(texts) // 2)}, texts=texts)
    (axes,) = drawn(pattern_figure, record(fakes, "mod", found)).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == texts[:POSITIONS]


def test_schemes_of_one_passage_stand_above_one_text(fakes: Any) -> None:
    found = passage({1: "0110"}, texts=["the", "sun", "also", "rises"])
    other = passage({1: "01"}, texts=["another", "text"])
    records = [record(fakes, label, found) for label in ("mod", "skip")]
    panels = drawn(pattern_figure, *records, record(fakes, "third", other)).axes
    assert [axes.get_title("left") for axes in panels] == ["mod", "skip", "third"]
    texts = [[label.get_text() for label in axes.get_xticklabels()] for axes in panels]
    assert texts == [[], found["texts"], other["texts"]]


def test_white_space_is_visible_and_other_scripts_do_not_warn(fakes: Any) -> None:
    texts = [" the", " ", "\n", "", "extraordinarily", "語", "\x07"]
    assert token_labels(texts) == ["the", "␣", "↵", "<end>", "extraord…", "□", "□"]
    unusual = record(fakes, "mod", passage({1: "1" * 7}, texts=texts))
    assert drawn_files({"of": lambda: drawn(pattern_figure, unusual)}, png=True)


def test_a_scheme_has_the_best_row_of_its_largest_budget(fakes: Any) -> None:
    def mod(width: int, budget: int, loss: float, seed: int = 0) -> Result:
        made: Result = fakes.make_record(
            f"mod/w{width}",
            router="mod",
            loss=loss,
            seed=seed,
            model={"width": width},
            train={"budget": budget},
        )
        return made

    records = [mod(64, 10**12, 4.0), mod(64, 2 * 10**12, 4.1, 1), mod(64, 2 * 10**12, 4.1)]
    (case,) = cases_of_board(board_of([*records, fakes.make_record("lost", status="oom")]))
    assert case.record is records[2]


def test_nothing_recorded_gives_no_file(fakes: Any, six: list[Result]) -> None:
    cases = cases_of_board(board_of(six))
    assert pattern_figure(cases) is None
    unrouted = passage({}, experts={0: [0, 1]}) | {"experts": []}
    assert pattern_figure([RoutingCase("mod", record(fakes, "mod", unrouted))]) is None
