"""The routing pattern of a passage and the histograms of router weights, on plainly made-up routings."""

from math import log
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgba

from modbench.records.result import Result
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.sweep import sweep_of
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.page import write_report
from modbench.report.plot_style import look
from modbench.report.routing.cases import MOST_CASES, RoutingCase, cases_of_board, cases_of_sweep
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
from modbench.report.routing.weights import MOST_LAYERS, weight_figure, weight_files

PLAN = {
    "learning_rates": [0.0025, 0.005, 0.01],
    "extensions": 2,
    "exponent": 0.0,
    "margin": 0.01,
    "middle_width": 64,
    "middle_budget": 10**12,
    "seed": 0,
}


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


def test_larger_router_weights_are_darker(fakes: Any) -> None:
    found = bars(passage({1: "0111"}, gates=[-3.0, 0.5, -1.0, 2.0]), fakes)
    brightness = [sum(bar.color[:3]) for bar in found if bar.layer == 1 and bar.tokens == 1]
    assert brightness[2] < brightness[0] < brightness[1] < sum(to_rgba("#f3f3f3")[:3])


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


def test_first_experts_have_a_colour_each_and_no_ops_none(fakes: Any) -> None:
    found = passage(experts={0: [0, 2, -1, 0], 1: [1, -1, -1, 1]})
    tokens = [bar for bar in bars(found, fakes) if bar.layer == 0 and bar.tokens == 1]
    assert [bar.first for bar in tokens] == [0, 1, 3]
    assert tokens[0].color == tokens[2].color != tokens[1].color
    figure = drawn(pattern_figure, record(fakes, "integrated", found))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[1:] == [*(f"first expert: {number}" for number in range(3)), "no-op experts only"]


def test_schemes_whose_experts_choose_are_named_as_not_drawn(fakes: Any) -> None:
    routing = fakes.make_routing((), (0,)) | {"passage": passage({}, experts={0: [0]}) | {"experts": []}}
    choosing = fakes.make_record("expert_choice", routing=routing)
    figure = drawn(pattern_figure, record(fakes, "mod", passage({1: "10"})), choosing)
    assert figure.legends[0].get_title().get_text().endswith("choose their tokens: expert_choice")


def test_depth_routed_schemes_come_first_and_at_most_six_are_drawn(fakes: Any) -> None:
    experts = record(fakes, "a", passage(experts={0: [0, 1]}))
    routed = [record(fakes, f"mod{number}", passage({1: "10"})) for number in range(MOST_CASES)]
    figure = drawn(pattern_figure, experts, *routed)
    names = [text for text in texts_of(figure) if text.startswith("mod") or text == "a"]
    assert names == [f"mod{number}" for number in range(MOST_CASES)]
    assert figure.get_suptitle() == "the first 6 of 7 schemes"


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
    (case,) = cases_of_board(Leaderboard.of([*records, fakes.make_record("lost", status="oom")]))
    assert case.record is records[2]


@pytest.mark.parametrize(("lowest", "expected"), [(64, 64), (1024, 128)])
def test_a_scheme_of_a_sweep_has_the_size_nearest_to_its_optimum(
    fakes: Any, lowest: int, expected: int
) -> None:
    """With its minimum beyond the largest size, the curve has no optimum; the lowest loss counts."""
    records = []
    for budget in (10**12, 3 * 10**12):
        for width in (32, 48, 64, 96, 128):
            for seed in (1, 0):
                made = record(
                    fakes,
                    f"mod/w{width}",
                    passage({1: "10"}),
                    router="mod",
                    seed=seed,
                    loss=4 + 0.1 * log(width / lowest) ** 2 - seed / 100,
                    model={"width": width},
                    train={"budget": budget, "learning_rate": 0.005},
                    metrics={"active_parameters": 12 * width**2},
                    suite={"isoflop": PLAN},
                )
                records.append(made)
    for rate in (0.0025, 0.01):
        trial = fakes.make_record(
            "mod/w64",
            router="mod",
            loss=6.0,
            model={"width": 64},
            train={"budget": 10**12, "learning_rate": rate},
            suite={"isoflop": PLAN},
        )
        records.append(trial)
    sweep = sweep_of(records, Leaderboard.of(records))
    assert sweep is not None
    (case,) = cases_of_sweep(sweep)
    assert (case.record.width, case.record.budget) == (expected, 3 * 10**12)
    assert case.record.seed == 0
    assert case.name == f"mod: width {expected}, 4 layers, 3e+12 training FLOPs"
    assert "](routing_pattern.svg)" in isoflop_page(sweep, drawn=["routing_pattern.svg"]).to_markdown()


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
    one.routing["topk"]["depth"][0]["gates"] = fine
    training = drawn(weight_figure, one).subfigs[0].axes[0].patches[2].get_data()
    assert list(training.edges) == [-2, -1.5, -1, -0.5, 0, 0.5, 1]
    expected = [0, 0, 2 / 90, 2 / 90, 8 / 90, 8 / 90]  # twice the share: of bins twice as wide
    assert list(training.values) == pytest.approx(expected)


def test_layers_of_a_deep_model_are_spread_from_first_to_last(fakes: Any) -> None:
    deep = fakes.make_record("mod", routing=fakes.make_routing(tuple(range(1, 18, 2))))
    part = drawn(weight_figure, deep).subfigs[0]
    assert [axes.get_title() for axes in part.axes] == ["layer 1", "layer 7", "layer 11", "layer 17"]
    assert part.get_suptitle() == f"mod ({MOST_LAYERS} of 9 layers)"


def test_nothing_recorded_gives_no_file(fakes: Any, six: list[Result]) -> None:
    cases = cases_of_board(Leaderboard.of(six))
    assert pattern_files(cases) == weight_files(cases) == {}
    unrouted = passage({}, experts={0: [0, 1]}) | {"experts": []}
    assert pattern_files([RoutingCase("mod", record(fakes, "mod", unrouted))]) == {}


def test_report_writes_both_figures_again_to_the_byte_and_shows_them(fakes: Any, tmp_path: Path) -> None:
    names = {f"{name}.{end}" for name in ("routing_pattern", "router_weights") for end in ("png", "svg")}
    found = passage({1: "0110", 3: "0001"}, {1: "0110", 3: "0010"}, gates=[0.1, 0.4, 0.2, -0.3])
    records = [record(fakes, "mod", found), fakes.make_record("vanilla")]
    contents = []
    for place in ("a", "b"):
        paths = write_report(fakes.store(tmp_path / place, records)).paths
        assert names <= {path.name for path in paths}
        contents.append({name: (tmp_path / place / name).read_bytes() for name in names})
    assert contents[0] == contents[1]
    page = (tmp_path / "a" / "leaderboard.md").read_text()
    assert "](routing_pattern.svg)" in page
    assert "](router_weights.svg)" in page


def test_page_without_routing_names_no_figure_of_it(
    fakes: Any, six: list[Result], tmp_path: Path
) -> None:
    write_report(fakes.store(tmp_path, six))
    assert "routing_pattern" not in (tmp_path / "leaderboard.md").read_text()
    assert not list(tmp_path.glob("router_weights*"))
