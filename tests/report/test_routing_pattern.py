"""The routing pattern of a passage, on plainly made-up routings."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from modbench.records.result import Result
from modbench.report.plot_style import drawn_files, look
from modbench.report.routing.cases import RoutingCase, cases_of
from modbench.report.routing.pattern import POSITIONS, pattern_figure, token_labels
from modbench.report.suite import suite_of

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


def bars_of(collection: Any) -> list[tuple[int, int, Any]]:
    """(first token, tokens, colour) of the bars of a layer."""
    spans = [path.vertices[:, 0] for path in collection.get_paths()]
    colors = map(tuple, collection.get_facecolor())
    return [(round(x.min()), round(np.ptp(x)), color) for x, color in zip(spans, colors, strict=True)]


def test_selected_tokens_are_blue_and_dense_layers_grey(fakes: Any) -> None:
    found = passage({1: "01100", 3: "00001"}, {1: "01010", 3: "00001"}, gates=[0.1, 0.2, 0.9, 0.1, 0.1])
    (axes,) = drawn(pattern_figure, record(fakes, "mod", found)).axes
    grey, pale = to_rgba("0.72"), to_rgba("#f3f3f3")
    bottom, first, dense, second = (bars_of(bars) for bars in axes.collections)  # layer 0 at the bottom
    assert bottom == dense == [(0, 5, grey)]
    (skipped, (start, of, light), (after, more, dark), rest) = first
    assert (skipped, start, of, after, more, rest) == ((0, 1, pale), 1, 1, 2, 1, (3, 2, pale))
    assert sum(dark) < sum(light)  # a larger gate
    assert second[0] == (0, 4, pale)
    (line, none) = axes.lines  # where the training rule differs
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [(2.5, 1.5), (3.5, 1.5)]
    assert not len(none.get_xdata())


def test_first_experts_have_colours_and_tokens_without_one_are_pale(fakes: Any) -> None:
    found = passage(experts={1: [0, 3, -1]}, texts=["a", "b", "c"])
    (axes,) = drawn(pattern_figure, record(fakes, "token_choice", found)).axes
    viridis = mpl.colormaps["viridis"]
    drawn_bars = [color for _, _, color in bars_of(axes.collections[1])]
    assert drawn_bars == [viridis(0.0), viridis(1.0), to_rgba("#f3f3f3")]


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
    (case,) = cases_of(suite_of([*records, fakes.make_record("lost", status="oom")]))
    assert case.record is records[2]


def test_nothing_recorded_gives_no_file(fakes: Any, six: list[Result]) -> None:
    cases = cases_of(suite_of(six))
    assert pattern_figure(cases) is None
    unrouted = passage({}, experts={0: [0, 1]}) | {"experts": []}
    assert pattern_figure([RoutingCase("mod", record(fakes, "mod", unrouted))]) is None
