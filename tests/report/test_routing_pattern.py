"""The routing pattern of a passage and the histograms of router weights, on plainly made-up routings."""

from typing import Any

import pytest

from modbench.records.result import Result
from modbench.records.sections import Weights
from modbench.report.leaderboard.board import board_of
from modbench.report.plot_style import look
from modbench.report.routing.cases import RoutingCase, cases_of_board
from modbench.report.routing.figure import weight_figure, weight_files
from modbench.report.routing.pattern import (
    STRIP,
    Bar,
    differing,
    layer_bars,
    pattern_figure,
    pattern_files,
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


def bars(found: dict[str, Any], fakes: Any, positions: range | None = None) -> list[Bar]:
    """The bars of a passage, of all positions unless some are given."""
    case = RoutingCase("mod", record(fakes, "mod", found))
    return [*layer_bars(case, positions or range(len(found["texts"])))]


def texts_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_bars_stand_where_a_layer_selects_and_dense_layers_are_full(fakes: Any) -> None:
    found = bars(passage({1: "01100", 3: "00001"}), fakes)
    assert [(bar.layer, bar.first, bar.tokens) for bar in found] == [
        (3, 0, 5),
        (3, 4, 1),
        (2, 0, 5),
        (1, 0, 5),
        (1, 1, 1),
        (1, 2, 1),
        (0, 0, 5),
    ]
    tops = [bar.top for bar in found]
    assert tops == sorted(tops)  # layer 0 at the bottom


def test_dots_mark_where_the_training_rule_differs(fakes: Any) -> None:
    case = RoutingCase("mod", record(fakes, "mod", passage({1: "01100"}, {1: "01010"})))
    assert [*differing(case, range(5))] == [(1, 2, True), (1, 3, False)]
    assert shares(case) == "selected here: 40.0 %, by the training rule 40.0 %"
    (axes,) = drawn(pattern_figure, case.record).axes
    dots = [points for points in axes.collections if type(points).__name__ == "PathCollection"]
    assert len(dots[0].get_offsets()) == 2
    same = RoutingCase("mod", record(fakes, "mod", passage({1: "01100"})))
    assert not [*differing(same, range(5))]


def test_a_long_passage_wraps_into_strips_with_its_text(fakes: Any) -> None:
    texts = [f"w{position}" for position in range(STRIP + 10)]
    found = passage({1: "10" * 37}, texts=texts)
    written = texts_of(drawn(pattern_figure, record(fakes, "mod", found)))
    assert [text for text in written if text.startswith("w")] == texts
    assert written.count("mod") == 2
    second = bars(found, fakes, range(STRIP, STRIP + 10))
    assert [bar.first for bar in second if bar.tokens == 1] == list(range(STRIP, STRIP + 10, 2))


def test_schemes_of_one_passage_stand_above_one_text(fakes: Any) -> None:
    found = passage({1: "0110"}, texts=["the", "sun", "also", "rises"])
    other = passage({1: "01"}, texts=["another", "text"])
    records = [record(fakes, label, found) for label in ("mod", "skip")]
    written = texts_of(drawn(pattern_figure, *records, record(fakes, "third", other)))
    assert written.count("rises") == written.count("another") == 1
    assert [text for text in written if text in ("mod", "skip", "third")] == ["mod", "skip", "third"]


def test_white_space_is_visible_and_other_scripts_do_not_warn(fakes: Any) -> None:
    texts = [" the", " ", "\n", "", "extraordinarily", "語", "\x07"]
    assert token_labels(texts) == ["the", "␣", "↵", "<end>", "extraord…", "□", "□"]
    unusual = record(fakes, "mod", passage({1: "1" * 7}, texts=texts))
    assert sorted(pattern_files([RoutingCase("mod", unusual)])) == [
        "routing_pattern.png",
        "routing_pattern.svg",
    ]


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


def test_weights_of_selected_tokens_stand_in_front_of_all(fakes: Any) -> None:
    figure = drawn(weight_figure, record(fakes, "mod"))
    one, other = figure.subfigs[0].axes
    assert [axes.get_title() for axes in (one, other)] == ["layer 1", "layer 3"]
    every, selected, training = (patch.get_data() for patch in one.patches)
    assert list(every.edges) == [-2, -1, 0, 1]
    assert list(every.values) == [0.3, 0.5, 0.2]
    assert list(selected.values) == list(training.values) == list(every.baseline) == [0, 0.02, 0.08]


def test_bins_of_another_width_keep_the_same_scale(fakes: Any) -> None:
    one = record(fakes, "mod")
    fine = {"exponent": -1, "first": -4, "all": [10, 20] * 3, "selected": [0, 0, 1, 1, 4, 4]}
    layers = one.routing.topk.depth
    layers[0] = layers[0].model_copy(update={"gates": Weights(**fine)})
    training = drawn(weight_figure, one).subfigs[0].axes[0].patches[2].get_data()
    assert list(training.edges) == [-2, -1.5, -1, -0.5, 0, 0.5, 1]
    expected = [0, 0, 2 / 90, 2 / 90, 8 / 90, 8 / 90]  # twice the share: of bins twice as wide
    assert list(training.values) == pytest.approx(expected)


def test_nothing_recorded_gives_no_file(fakes: Any, six: list[Result]) -> None:
    cases = cases_of_board(board_of(six))
    assert pattern_files(cases) == weight_files(cases) == {}
    unrouted = passage({}, experts={0: [0, 1]}) | {"experts": []}
    assert pattern_files([RoutingCase("mod", record(fakes, "mod", unrouted))]) == {}
