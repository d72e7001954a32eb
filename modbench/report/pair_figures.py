"""Figures of the frame of pairs: differences to the dense model by budget, and a forest plot of all
pairs. A difference is significant if its verdict, adjusted for its family, is better or worse."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from modbench.analysis.frames import DENSE, plain_records
from modbench.errors import several
from modbench.report.pairs import TO_DENSE, by_seed
from modbench.report.plot_style import (
    GREY,
    PANEL,
    REFERENCE,
    WIDTH,
    Draws,
    Mark,
    handle,
    legend_below,
    panels,
    paper,
)
from modbench.report.suite import Suite

#: A row of the frame. Its ``place`` is the key of its budget, or comparison, in ``names``.
Pair = Mapping[str, Any]
#: Values of the option ``scores`` of which the tokens selected don't depend on a token's content.
_CONTROLS = {"gaussian", "hash", "stride"}
#: Inches of an interval, between two pairs, and of the differences of single seeds.
_INTERVAL, _GAP, _SEEDS = 0.11, 0.14, 0.2
MOST_PAIRS = 40  #: of a forest plot
#: Kinds of differences with their marker; without a verdict it is a stroke across the interval.
_SIGNIFICANT, _EQUIVALENT, _NOT, _UNTOLD = "significant", "equivalent", "not significant", "no verdict"
_MARKERS = {_SIGNIFICANT: "o", _EQUIVALENT: "D", _NOT: "o"}
_BUDGET, _LOSS = "training FLOPs", "validation loss (nats/token)"
_CONTROL: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1}
_ZERO: dict[str, Any] = {"color": REFERENCE, "linewidth": 1.4, "zorder": 1}


def pair_figures(suite: Suite, look_of: Mapping[str, Mark]) -> Draws:
    """The figures of the pairs of ``suite``; of those that it states, with differences ``by_seed``."""
    sweep = suite.sweep
    pairs = _with_interval(sweep.curves.pairs if sweep else suite.pairs)
    if sweep:
        names = {budget: f"{budget:.3g} {_BUDGET}" for budget in sweep.budgets}
    else:
        numbers = (rows[0]["comparison"] for rows in suite.comparisons)
        names = dict(zip(numbers, suite.titles, strict=True))
        if suite.state["compare"] and (stated := [pair for pair in pairs if pair["family"]]):
            pairs = [{**pair, "by_seed": by_seed(pair, suite.of_row, suite.schemes)} for pair in stated]
    is_control = {of.scheme for of in suite.results if of.run.router.options.get("scores") in _CONTROLS}
    return {
        "difference_to_dense": partial(to_dense, pairs, names, look_of, is_control),
        "differences": partial(forest, pairs, names),
    }


def not_all_drawn(frame: pd.DataFrame) -> str:
    """A sentence for the caption of the forest plot of ``frame`` if it has too many pairs."""
    number = len(_lines(_with_interval(frame)))
    if number <= MOST_PAIRS:
        return ""
    return (
        f" Of {number} pairs, {MOST_PAIRS} are drawn: those of a family of comparisons before the "
        "others, and of either those with the dense model first. All are in differences.csv."
    )


def to_dense(
    pairs: Sequence[Pair],
    names: Mapping[int, str],
    look_of: Mapping[str, Mark],
    controls: Collection[str] = (),
) -> Figure | None:
    """The difference of each scheme to the dense model by place, schemes side by side and named next to
    their last point. None with fewer than two places."""
    points: dict[str, dict[int, Pair]] = defaultdict(dict)
    for pair in pairs:
        is_dense = pair["other"] == DENSE or pair["family"] == TO_DENSE
        if is_dense and pair["place"] and not pair["depth"]:
            points[pair["scheme"]].setdefault(pair["place"], pair)
    places = [place for place in names if any(place in of for of in points.values())]
    if len(places) < 2:
        return None
    figure, (axes,) = panels(1, 0.6 * WIDTH)
    axes.axhline(0, **_ZERO)
    last: dict[str, tuple[float, float]] = {}
    kinds: set[str] = set()
    mark_of = {scheme: look_of.get(scheme.partition("/")[0], GREY) for scheme in points}
    for number, (scheme, of_scheme) in enumerate(points.items()):
        shift = 0.6 * ((number + 0.5) / len(points) - 0.5)
        mark, is_control = mark_of[scheme], scheme in controls
        known = [(number + shift, of_scheme[of]) for number, of in enumerate(places) if of in of_scheme]
        line = [(x, pair["value"]) for x, pair in known]
        style: dict[str, Any] = _CONTROL if is_control else {"linewidth": 1}
        axes.plot(*zip(*line, strict=True), color=mark.color, **style)
        for x, pair in known:
            kinds.add(kind := _kind(pair))
            shown = mark if pair["verdict"] else Mark(mark.color, "_")
            _draw(axes, x, pair, shown, filled=kind == _SIGNIFICANT and not is_control)
        last[scheme] = line[-1]
    for number, scheme in enumerate(sorted(last, key=lambda of: last[of][1])):
        arrow = {"arrowstyle": "-", "color": mark_of[scheme].color, "relpos": (0, 0.5), "linestyle": ":"}
        at: dict[str, Any] = {"xytext": (1.03, (number + 0.5) / len(last)), "va": "center"}
        axes.annotate(scheme, last[scheme], textcoords="axes fraction", arrowprops=arrow, **at)
    axes.set_xlim(-0.5, len(places) - 0.5)
    budgets = [names[place].replace(f" {_BUDGET}", "") for place in places]
    axes.set_xticks(range(len(places)), budgets)
    axes.set_xlabel(_BUDGET)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(f"{_LOSS}\nminus dense, 95 % interval")
    handles: dict[str, Any] = {"dense": Line2D([], [], **_ZERO)}
    handles |= _handles_of(kinds, "_")
    if {*controls} & {*last}:
        handles["control, always hollow"] = handle(GREY, filled=False, **_CONTROL)
    legend_below(figure, handles, columns=4)
    return figure


def forest(pairs: Sequence[Pair], names: Mapping[int, str]) -> Figure | None:
    """The differences of all pairs, a line per pair with its places below each other, and below each
    place its differences ``by_seed``, if the pairs have them. Of too many pairs, the first that
    `not_all_drawn` tells. None without a pair."""
    rows = _lines(pairs)
    if len(rows) > MOST_PAIRS:
        tested_first = sorted(rows, key=lambda of: not any(pair["family"] for pair in rows[of].values()))
        rows = {of: rows[of] for of in tested_first[:MOST_PAIRS]}
    if not rows:
        return None
    places = [of for of in (*names, None) if any(of in of_pair for of_pair in rows.values())]
    colors = [mpl.colormaps["viridis"](0.7 * n / max(len(places) - 1, 1)) for n in range(len(places))]
    line = _INTERVAL + any("by_seed" in pair for pair in pairs) * _SEEDS
    height = line * len(places) + _GAP
    figure, (axes,) = panels(1, height * len(rows) + PANEL / 4)
    axes.axvline(0, **_ZERO)
    kinds: set[str] = set()
    band = None
    for number, of_pair in enumerate(rows.values()):
        for place, pair in of_pair.items():
            at, kind = places.index(place), _kind(pair)
            kinds.add(kind)
            y = number + line / height * (at - (len(places) - 1) / 2)
            if seeds := [*pair.get("by_seed", {}).values()]:
                below = [y + _SEEDS / 2 / height] * len(seeds)
                axes.plot(seeds, below, ".", color=colors[at], alpha=0.5, markersize=4)
                if margin := pair["margin"]:
                    band = axes.barh(
                        y, 2 * margin, 0.9 * line / height, -margin, color=REFERENCE, alpha=0.2
                    )
            mark = Mark(colors[at], _MARKERS.get(kind, "|"))
            _draw(axes, y, pair, mark, filled=kind == _SIGNIFICANT, sideways=True)
        if number % 2:
            axes.axhspan(number - 0.5, number + 0.5, color=REFERENCE, alpha=0.1, linewidth=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [*rows])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"difference of {_LOSS}, 95 % interval\nbelow 0: the first scheme is better")
    handles: dict[str, Any] = {}
    for place, color in zip(places, colors, strict=True) if len(places) > 1 else ():
        handles["runs of equal shape" if place is None else names[place]] = handle(Mark(color, "o"))
    if band:
        handles["margin"] = band
    legend_below(figure, handles | _handles_of(kinds, "|"))
    return figure


def _handles_of(kinds: Collection[str], stroke: str) -> dict[str, Any]:
    """Legend entries of ``kinds`` of differences; ``stroke``: the marker without a verdict."""
    return {
        kind: handle(Mark(REFERENCE, marker), filled=kind == _SIGNIFICANT)
        for kind, marker in (_MARKERS | {_UNTOLD: stroke}).items()
        if kind in kinds
    }


def _kind(pair: Pair) -> str:
    if pair["verdict"] in ("better", "worse"):
        return _SIGNIFICANT
    return _EQUIVALENT if pair["verdict"] == "equivalent" else _NOT if pair["verdict"] else _UNTOLD


def _with_interval(frame: pd.DataFrame) -> list[Pair]:
    pairs = (pair for pair in plain_records(frame) if pair["low"] is not None)
    return [{**pair, "place": pair["comparison"] or pair["budget"]} for pair in pairs]


def _lines(pairs: Sequence[Pair]) -> dict[str, dict[int | None, Pair]]:
    """The pairs of each line of the forest plot by its name and their place. In a suite of several
    depths, a pair at a budget is at one depth, or each scheme at its best one."""
    at_best = ", best depth of each" if any(pair["depth"] for pair in pairs) else ""
    lines: dict[str, dict[int | None, Pair]] = defaultdict(dict)
    for pair in _each_once(pairs):
        depth = f", {several(pair['depth'], 'layer')}" if pair["depth"] else pair["place"] and at_best
        name = f"{pair['scheme']} \N{MINUS SIGN} {pair['other']}{depth or ''}"
        lines[name].setdefault(pair["place"], pair)
    return lines


def _each_once(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair of schemes in one direction: minus the dense model, or the scheme that comes first in
    the frame minus the other. The pairs with the dense model come first. Pairs that a suite states, with
    differences ``by_seed``, stay as they are."""
    if any("by_seed" in pair for pair in pairs):
        return [*pairs]
    names = dict.fromkeys(name for pair in pairs for name in (pair["scheme"], pair["other"]))
    rank = {name: number for number, name in enumerate(sorted(names, key=lambda of: of == DENSE))}

    def of_one_direction(pair: Pair) -> Pair:
        scheme, other = pair["scheme"], pair["other"]
        if rank[scheme] < rank[other]:
            return pair
        ends = {"value": -pair["value"], "low": -pair["high"], "high": -pair["low"]}
        return {**pair, "scheme": other, "other": scheme, **ends}

    def place(pair: Pair) -> tuple[bool, int, int]:
        return pair["other"] != DENSE, rank[pair["scheme"]], rank[pair["other"]]

    return sorted(map(of_one_direction, pairs), key=place)


def _draw(
    axes: Axes, at: float, pair: Pair, mark: Mark, *, filled: bool, sideways: bool = False
) -> None:
    """Draw the value of ``pair`` with its interval; ``at``: its place on the other axis."""
    value = pair["value"]
    errors = [[max(0, value - pair["low"])], [max(0, pair["high"] - value)]]
    style: dict[str, Any] = {"color": mark.color, "marker": mark.marker, "markersize": 5}
    style |= {"markerfacecolor": mark.color if filled else paper(), "elinewidth": 1}
    if sideways:
        axes.errorbar([value], [at], xerr=errors, **style | {"capsize": 0})
    else:
        axes.errorbar([at], [value], yerr=errors, **style)
