"""The report of an isoFLOP suite with curves of several depths, from made-up records of known curves."""

import csv
import io
from collections import defaultdict
from collections.abc import Mapping
from math import log
from pathlib import Path

import pytest
from isoflop_made_up import BUDGETS, RATES, Make, curve_loss, run, sweep_records, table_under
from made_up_records import store
from matplotlib.text import Text

from modbench.records.result import Result
from modbench.report.isoflop.curve_figures import depth_curves
from modbench.report.isoflop.figures import sweep_marks
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.sweep import Sweep, sweep_of
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.page import DERIVED, write_report
from modbench.report.routing.cases import cases_of_sweep
from modbench.report.sections import Heading
from modbench.report.table import Table

#: How much higher the loss of a scheme is at each depth than at its best one, in nats.
LOSSES = {"vanilla": {2: 0.0, 4: 0.1, 8: 0.3}, "mod": {2: 0.5, 4: 0.0, 8: 0.2}}
MIDDLE = "3e+12 training FLOPs"


def records(
    make: Make, losses: Mapping[str, Mapping[int, float]] = LOSSES, edge: tuple[str, int] | None = None
) -> list[Result]:
    """Sweeps of schemes and depths; the loss of ``edge`` falls up to the largest size."""

    def curve(scheme: str, depth: int, more: float, width: int, budget: int) -> float:
        falling = -0.5 * log(width / 64) if (scheme, depth) == edge else 0.0
        return curve_loss(scheme, width, budget) + more + falling

    return [
        record
        for scheme, depths in losses.items()
        for depth, more in depths.items()
        for record in sweep_records(
            make, scheme, lambda w, b, at=(scheme, depth, more): curve(*at, w, b), depth=depth
        )
    ]


def swept(found: list[Result]) -> Sweep:
    sweep = sweep_of(found, Leaderboard.of(found))
    assert sweep is not None
    return sweep


#: Sweeps of `records` that were analysed, by their edge.
_ANALYSED: dict[tuple[str, int] | None, Sweep] = {}


def deep(make: Make, edge: tuple[str, int] | None = None) -> Sweep:
    """The sweep of `records`, analysed once for all tests."""
    if edge not in _ANALYSED:
        _ANALYSED[edge] = swept(records(make, edge=edge))
    return _ANALYSED[edge]


def depth_rows(sweep: Sweep, budget: str = "3e+12") -> dict[tuple[str, str], list[str]]:
    """The rows of the table of all depths by scheme and depth."""
    caption = f"Optima at each depth, {budget} training FLOPs"
    tables = [part for part in isoflop_page(sweep).parts if isinstance(part, Table)]
    table = next(table for table in tables if table.caption == caption)
    return {(str(row[0]), str(row[1])): [str(cell) for cell in row] for row in table.rows}


def test_each_scheme_is_ranked_at_its_best_depth(make: Make) -> None:
    page = isoflop_page(deep(make))
    first, second = table_under(page, MIDDLE)
    assert first[:3] == ["best", "mod", "4 (100% of draws)"]
    assert second[:3] == ["-", "vanilla", "2 (100% of draws)"]
    assert first[4].startswith("-0.3")  # 3.7 at four layers minus 4.0 at two
    assert first[4].endswith("better")
    assert "2 schemes, each at its own optimal size and depth (of 2, 4, 8 layers)" in page.to_markdown()


def test_schemes_are_compared_at_equal_depth_too(make: Make) -> None:
    rows = depth_rows(deep(make))
    minus = {depth: rows["mod", depth][3] for depth in ("2", "4", "8")}
    assert minus["2"].startswith("+0.2")  # .5 - .3
    assert minus["2"].endswith("worse")
    assert minus["4"].startswith("-0.4")
    assert minus["8"].startswith("-0.4")
    assert minus["8"].endswith("better")
    assert rows["vanilla", "2"][3] == "-"


def test_depth_at_an_edge_of_its_sizes_is_no_candidate(make: Make) -> None:
    sweep = deep(make, ("mod", 8))
    assert depth_rows(sweep)["mod", "8"][-1] == "edge-high; no candidate for the best depth"
    assert depth_rows(sweep)["mod", "8"][2:4] == ["-", "-"]
    mod = next(row for row in table_under(isoflop_page(sweep), MIDDLE) if row[1] == "mod")
    assert mod[2].startswith("4 (")
    # Four layers is the largest of those with an optimum, not of those that were tried.
    assert mod[-1].startswith("interior; no candidate: 8 layers edge-high; ")
    assert mod[-1].endswith("the largest depth with an interior optimum")


def test_best_depth_at_an_end_of_those_tried_is_said(make: Make) -> None:
    rows = {row[1]: row[-1] for row in table_under(isoflop_page(deep(make)), MIDDLE)}
    assert rows == {"mod": "interior", "vanilla": "interior; the smallest depth tried"}


def test_scheme_without_an_interior_depth_has_no_best_one(make: Make) -> None:
    found = records(make, {"vanilla": LOSSES["vanilla"], "mod": {8: 0.0}}, edge=("mod", 8))
    mod = next(row for row in table_under(isoflop_page(swept(found)), MIDDLE) if row[1] == "mod")
    assert (mod[0], mod[2], mod[3]) == ("not ranked", "-", "-")
    assert mod[-1].startswith("edge-high; no depth is a candidate: 8 layers edge-high")


def test_scheme_whose_rate_at_its_best_depth_is_at_the_edge_is_not_ranked(make: Make) -> None:
    plan = {"learning_rates": [0.005, 0.01, 0.02], "extensions": 0}
    edge = [run(make, "mod", 64, BUDGETS[1], depth=4, plan=plan, rate=0.02, loss=4.5)]
    edge += sweep_records(make, "mod", lambda w, b: curve_loss("mod", w, b), depth=4, plan=plan)
    others = records(make, {"vanilla": LOSSES["vanilla"], "mod": {8: 0.2}})
    page = isoflop_page(swept([*others, *edge]))
    mod = next(row for row in table_under(page, MIDDLE) if row[1] == "mod")
    assert mod[0] == "not ranked"
    assert "learning rate: edge" in mod[-1]
    assert "Not ranked: mod at 4 layers." in page.to_markdown()


def test_depth_that_waits_for_its_learning_rate_stands_with_the_reason(make: Make) -> None:
    waiting = run(make, "mod", 64, BUDGETS[1], depth=12, rate=0.0025)
    rows = depth_rows(swept([*records(make), waiting]))
    assert rows["mod", "12"][-1] == "its learning rate is not chosen yet"


def test_page_states_what_is_held_fixed(make: Make) -> None:
    text = isoflop_page(deep(make)).to_markdown()
    assert "- Depths: 2, 4, 8 layers, with a learning rate chosen at each." in text
    assert "width over layers is 4 to 64. Held fixed in all shapes: vocabulary 2048." in text


def test_figure_has_a_panel_per_depth_and_an_envelope(make: Make) -> None:
    sweep = deep(make, ("mod", 8))
    marks = sweep_marks(sweep)
    figure = depth_curves(sweep, marks)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == [
        *(f"{depth} layers, 1e+12 FLOPs" for depth in (2, 4, 8)),
        "lowest of all depths, 1e+12 FLOPs",
    ]
    assert len(titles) == 4 * len(BUDGETS)
    envelope = figure.axes[7]
    texts = [child.get_text() for child in envelope.get_children() if isinstance(child, Text)]
    assert {"mod: 4 layers", "vanilla: 2 layers"} <= set(texts)
    stars = [line for line in envelope.lines if line.get_marker() == "*"]
    losses = sorted(float(line.get_ydata()[0]) for line in stars)  # type: ignore[index, arg-type]
    assert losses == pytest.approx([3.7, 4.0], abs=0.01)
    hollow = [line for line in figure.axes[6].lines if line.get_markerfacecolor() == "white"]
    assert [line.get_color() for line in hollow] == [marks["mod"].color]


def test_a_depth_without_runs_has_no_panel_and_an_empty_panel_says_so(make: Make) -> None:
    kept = [of for of in records(make) if of.depth != 2 or of.budget != min(BUDGETS)]
    waiting = run(make, "mod", 64, BUDGETS[1], depth=12, rate=0.0025)  # for its learning rate
    sweep = swept([*kept, waiting])
    figure = depth_curves(sweep, sweep_marks(sweep))
    titles = [axes.get_title() for axes in figure.axes]
    assert sweep.depths == [2, 4, 8, 12]
    assert not [title for title in titles if title.startswith("12 layers")]
    empty = [
        axes.get_title()
        for axes in figure.axes
        if any(text.get_text() == "no runs" for text in axes.findobj(Text))
    ]
    assert empty == ["2 layers, 1e+12 FLOPs"]


def test_files_state_the_depth(make: Make, tmp_path: Path) -> None:
    folder = store(tmp_path / "sweep", records(make))
    write_report(folder, html=True)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files <= DERIVED
    assert {"isoflop_depths.png", "depths.csv", "index.html"} <= files
    assert not any(name.startswith("isoflop_curves") for name in files)

    def rows(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((folder / name).read_text())))

    optima = {(r["budget"], r["fit"], r["scheme"]): r for r in rows("optima.csv")}
    mod = optima[str(BUDGETS[1]), "parabola", "mod"]
    assert (mod["layers"], mod["layers_share"], mod["layers_compared"]) == ("4", "1.0", "2 4 8")
    depths = rows("depths.csv")
    assert len(depths) == len(BUDGETS) * 3 * 2 * 3
    best = {(r["scheme"], r["layers"]) for r in depths if r["best"] == "True"}
    assert best == {("mod", "4"), ("vanilla", "2")}
    assert {row["sizes"] for row in depths} == {"5"}
    assert {(row["budget"] == str(BUDGETS[1]), row["runs"]) for row in depths} == {
        (True, "15"),
        (False, "5"),
    }
    assert all(float(row["scatter"]) < 0.01 for row in depths)
    differences = rows("differences.csv")
    families: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in differences:
        families[row["family"]].append(row)
    assert len(families["dense, equal depth"]) == 3 * len(BUDGETS)
    assert {r["layers"] for r in families["dense"]} == {""}
    adjusted = [float(r["p_adjusted"]) / float(r["p"]) for r in families["dense, equal depth"]]
    assert max(adjusted) == pytest.approx(9)  # Holm's: the smallest p times the number of comparisons
    assert {r["layers"] for r in rows("learning_rates.csv")} == {"2", "4", "8"}
    html = (folder / "index.html").read_text()
    assert "Optima at each depth" in html
    assert "isoflop depths" in html


def test_scatter_stands_by_depth(make: Make) -> None:
    """A curve that no parabola fits: one size of the dense model at 8 layers is .1 nats too high."""
    found = records(make)
    bent = [
        run(
            make,
            of.scheme,
            of.width,
            of.budget,
            depth=8,
            seed=of.seed,
            loss=of.metrics["heldout_loss"] + 0.1,
        )
        if (of.scheme, of.depth, of.width, of.budget) == ("vanilla", 8, 64, BUDGETS[0])
        else of
        for of in found
    ]
    page = isoflop_page(swept(bent))
    parts = page.parts[page.parts.index(Heading("Scatter around the curves", 3)) :]
    table = next(part for part in parts if isinstance(part, Table))
    scatters = {(str(row[0]), str(row[1])): float(str(row[2])) for row in table.rows}
    assert len(scatters) == 3 * len(BUDGETS)
    high = scatters.pop(("1e+12", "8"))
    assert high > 0.03 > 0.01 > max(scatters.values())


def test_runs_of_one_shape_are_compared_within_their_depth(make: Make, tmp_path: Path) -> None:
    write_report(store(tmp_path, records(make)))
    rows = csv.DictReader(io.StringIO((tmp_path / "differences.csv").read_text()))
    (equal,) = [row for row in rows if not row["budget"]]
    assert equal["cells"] == str(3 * 5 * len(BUDGETS))
    # The mean over depths of mod's loss minus that of vanilla; no trend with size.
    assert float(equal["difference"]) == pytest.approx((0.5 - 0.1 + 0.0 - 0.1) / 3 - 0.3, abs=0.04)
    assert float(equal["per_efold_of_size"]) == pytest.approx(0, abs=1e-9)


def test_routing_is_drawn_at_the_best_depth(make: Make) -> None:
    cases = {case.record.scheme: case.record.depth for case in cases_of_sweep(deep(make))}
    assert cases == {"vanilla": 2, "mod": 4}


def test_rates_are_those_of_the_depth(make: Make) -> None:
    sweep = deep(make)
    assert set(sweep.rates) == {(scheme, depth) for scheme in LOSSES for depth in (2, 4, 8)}
    assert all(rates.choice.best == RATES[64] for rates in sweep.rates.values())
    assert sweep.depths == [2, 4, 8]
