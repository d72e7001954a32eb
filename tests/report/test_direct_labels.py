"""Names at the edge of a panel: apart from each other, near their points, never cut."""

from itertools import pairwise

import pytest
from matplotlib.text import Text

from modbench.report.direct_labels import End, label_ends, spread
from modbench.report.plot_style import look, sheet


@pytest.mark.parametrize(
    ("wanted", "heights", "found"),
    [
        ([], [], []),
        ([0.5], [0.1], [0.5]),
        ([0.2, 0.8], [0.1, 0.1], [0.2, 0.8]),
        ([0.5, 0.5], [0.1, 0.1], [0.45, 0.55]),
        ([0.8, 0.2, 0.21], [0.1, 0.1, 0.1], [0.8, 0.155, 0.255]),
        ([0.5, 0.5], [0.1, 0.3], [0.4, 0.6]),
        ([0.0, 0.0], [0.1, 0.1], [0.05, 0.15]),
        ([1.0, 1.0], [0.1, 0.1], [0.85, 0.95]),
    ],
    ids=str,
)
def test_names_are_moved_apart_as_little_as_possible(
    wanted: list[float], heights: list[float], found: list[float]
) -> None:
    assert spread(wanted, heights) == pytest.approx(found)


@pytest.mark.parametrize("name", ["mod", "a scheme, 60 characters long: " + "x" * 30, "$_{"])
def test_names_lie_inside_the_figure_and_apart(name: str) -> None:
    with look():
        figure = sheet()
        panels = figure.subplots(1, 2)
        ends = [End(1.0, 2.0, f"{name} {number}", "black") for number in range(6)]
        for axes in panels:
            axes.plot([0, 1], [1, 2])
        label_ends(figure, [(axes, ends) for axes in panels])
        figure.draw_without_rendering()
        for axes in panels:
            # Without the lines to the points.
            boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
            assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
            for lower, upper in pairwise(boxes):
                assert lower.y1 <= upper.y0 + 1
