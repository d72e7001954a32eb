"""Routing over the course of training: its frame, and the table and figures of that."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.special import stdtrit

from modbench.analysis.frames import frame_of
from modbench.analysis.routing import agreement, load_measures, saturation, specialisation
from modbench.records.result import Result
from modbench.records.traces import PREDICTORS, RULES, Place
from modbench.report.plot_style import DOTTED, WIDTH, Draws, Mark, legend_below, panels
from modbench.report.table import Number, Table

#: Of each figure, the row, its scheme and its seed; the share of the run, the layer and what it decides,
#: missing where it is of none; and its name and value.
_COLUMNS = {
    **dict.fromkeys(("row", "scheme", "kind", "metric"), "string"),
    **dict.fromkeys(("seed", "layer"), "Int64"),
}
COLUMNS = ("row", "scheme", "seed", "share", "layer", "kind", "metric", "value")
#: Words of predictors and rules.
_WORDS = {"id": "token id", "ids": "two token ids"}
#: Largest number of panels, in the table's order.
_MOST_ROWS = 12
#: The share of a run at which the table shows the saturation, or the nearest one recorded.
_EARLY = 0.1
_Figure = tuple[float, int | None, str | None, str, float | None]


def course_frame(results: Sequence[Result], rows: Sequence[str]) -> pd.DataFrame:
    """The figures of ``results``, each of one of ``rows``, that finished and were traced: one a line."""
    lines = []
    ends: dict[str, dict[int, dict[Place, Any]]] = {}
    for result, row in zip(results, rows, strict=True):
        if result.status != "ok" or result.traces is None:
            continue
        ends.setdefault(row, {})[result.seed] = result.traces.arrays().end
        lines += [(row, result.scheme, result.seed, *figure) for figure in _figures(result)]
    schemes = {row: result.scheme for result, row in zip(results, rows, strict=True)}
    for row, of_seed in ends.items():
        for seed, places in of_seed.items():
            for place, own in places.items():
                others = [of[place] for other, of in of_seed.items() if other != seed and place in of]
                values = [agreement(own.chosen_NE, other.chosen_NE) for other in others]
                known = [value for value in values if value is not None]
                mean = sum(known) / len(known) if known else None
                lines.append((row, schemes[row], seed, 1.0, *place, "agreement_seeds", mean))
    found = [dict(zip(COLUMNS, line, strict=True)) for line in lines if line[-1] is not None]
    return frame_of(found, COLUMNS, _COLUMNS)


def _figures(result: Result) -> Iterator[_Figure]:
    """Share of the run, layer, kind, name and value of each figure of a run."""
    assert result.traces is not None
    arrays = result.traces.arrays()
    groups = {"id": arrays.ids_WT.ravel(), "document": arrays.documents_WT.ravel()}
    for point in result.traces.points:
        share, decided = point.share, arrays.points[point.share]
        for layer in point.layers:
            place, of = (layer.layer, layer.kind), decided[layer.layer, layer.kind]
            final = arrays.end.get(place)
            figures: dict[str, float | None] = {"added": layer.added}
            figures |= dict(zip(("gate", "gate_spread"), layer.gate or (), strict=False))
            if final:
                figures["saturation"] = saturation(of.chosen_NE, final.chosen_NE)
            figures |= load_measures(of.chosen_NE.sum(0)) if layer.kind == "experts" else {}
            yield from ((share, *place, name, value) for name, value in figures.items())
        yield from ((share, None, None, f"series_{name}", value) for name, value in point.series.items())
    before: dict[str, Any] = {}
    for (number, kind), of in sorted(arrays.end.items()):
        for name, group_N in groups.items():
            value = specialisation(of.chosen_NE[of.reached_N], group_N[of.reached_N])
            yield 1.0, number, kind, f"specialisation_{name}", value
        if kind in before and before[kind].chosen_NE.shape == of.chosen_NE.shape:
            value = agreement(before[kind].chosen_NE, of.chosen_NE)
            yield 1.0, number, kind, "agreement_layers", value
        before[kind] = of
    if result.rules:
        for ruled in result.rules.layers:
            for name, area in ruled.auc.items():
                yield 1.0, ruled.layer, ruled.kind, f"auc_{name}", area
        for name, loss in result.rules.losses.items():
            replaced = min(ruled.kind for ruled in result.rules.layers) if result.rules.layers else None
            yield 1.0, None, replaced, f"loss_{name}", loss


def course_section(
    course: pd.DataFrame, results: Sequence[Result], rows: Sequence[str]
) -> dict[str, Any]:
    """Values of the template `pages/routing.md.j2`; without a table if nothing was traced."""
    routed = course[course["kind"].notna()]
    if routed.empty:
        return {"table": None}
    shares = sorted(routed.loc[routed["metric"] == "saturation", "share"].unique())
    early = min(shares, key=lambda share: abs(share - _EARLY))
    columns = {f"saturation at {early:.3g}": ("saturation", early)}
    columns |= {f"AUC: {_in_words(name)}": (f"auc_{name}", 1.0) for name in PREDICTORS}
    columns |= {f"loss: {_in_words(name)}": (f"loss_{name}", 1.0) for name in RULES}
    lines = []
    for (row, kind), of in routed.groupby(["row", "kind"], sort=False):
        cells = {}
        for heading, (metric, share) in columns.items():
            one = of[(of["metric"] == metric) & (of["share"] == share)]
            seeds = one.groupby("seed")["value"].mean().astype(float)
            cells[heading] = _with_interval(seeds, 4 if metric.startswith("loss") else 3)
        lines.append({"scheme": row, "decides": kind, **cells})
    lines.sort(key=lambda line: [*dict.fromkeys(rows)].index(line["scheme"]))
    used = [name for name in lines[0] if any(line[name] is not None for line in lines)]
    table = Table.of([{name: line[name] for name in used} for line in lines], left=(0, 1))
    waiting, alone = dict[str, None](), dict[str, None]()
    for result, row in zip(results, rows, strict=True):
        if result.status == "ok" and result.traces and row in {*routed["row"]}:
            if result.rules is None:
                waiting[row] = None
            elif all("dense_loss" not in layer.auc for layer in result.rules.layers):
                alone[row] = None
    return {"table": table.about("Routing over training"), "waiting": [*waiting], "alone": [*alone]}


def _in_words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def _with_interval(seeds: "pd.Series[float]", digits: int) -> str | None:
    """The mean of ``seeds`` ± half its 95 % t-interval, which one seed lacks."""
    if seeds.empty:
        return None
    count, mean = len(seeds), float(seeds.mean())
    half = f" ± {seeds.std() * stdtrit(count - 1, 0.975) / count**0.5:.{digits}f}" if count > 1 else ""
    return Number(f"{mean:.{digits}f}{half}", mean)


def course_figures(course: pd.DataFrame, look_of: Mapping[str, Mark]) -> Draws:
    """The figures of ``course``. ``look_of``: the marks of all schemes."""
    series = course[course["metric"].str.startswith("series_")]
    saturated = course[course["metric"] == "saturation"]
    areas = course[course["metric"].str.startswith("auc_")]
    return {
        "routing_saturation": partial(_over_training, saturated, look_of, "decisions of the end"),
        "routing_predictors": partial(_by_layer, areas),
        "routing_series": partial(_over_training, series, look_of, "mean of the batch"),
    }


def _over_training(lines: pd.DataFrame, look_of: Mapping[str, Mark], words: str) -> Figure | None:
    """The means over layers and seeds against the share of the run, with a band from the least to the
    greatest seed; a panel for each kind of decision, or each series."""
    titles = lines["kind"].fillna(lines["metric"].str.removeprefix("series_"))
    groups = [*lines.groupby(titles, sort=True)]
    if not groups:
        return None
    figure, every = panels(len(groups))
    handles: dict[str, Any] = {}
    for axes, (title, of_panel) in zip(every, groups, strict=True):
        axes.set_title({"depth": "tokens selected", "experts": "experts chosen"}.get(title, title))
        for (row, scheme), of in of_panel.groupby(["row", "scheme"], sort=False):
            seeds = of.groupby(["share", "seed"])["value"].mean().astype(float).groupby("share")
            mark, mean = look_of[scheme], seeds.mean()
            shares, style = mean.index.astype(float), {"color": mark.color, "marker": mark.marker}
            (handles[row],) = axes.plot(shares, mean, linestyle=mark.dashes, markersize=4.5, **style)
            low, high = seeds.min(), seeds.max()
            axes.fill_between(shares, low, high, color=mark.color, alpha=0.18, linewidth=0)
        axes.set_xscale("symlog", linthresh=0.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        axes.set_xlim(0, 1)
    figure.supxlabel("share of the run", fontsize="medium")
    figure.supylabel(words, fontsize="medium")
    legend_below(figure, handles)
    return figure


def _by_layer(areas: pd.DataFrame) -> Figure | None:
    """The area under the ROC curve of each predictor by layer, means over seeds, a panel for each row
    and kind of decision."""
    groups = [*areas.groupby(["row", "kind"], sort=False)][:_MOST_ROWS]
    if not groups:
        return None
    figure, every = panels(len(groups), 0.35 * WIDTH, sharey=True)
    handles: dict[str, Any] = {}
    for axes, ((row, kind), of) in zip(every, groups, strict=True):
        axes.set_title(f"{row}, {kind}")
        for number, name in enumerate(PREDICTORS):
            means = of[of["metric"] == f"auc_{name}"].groupby("layer")["value"].mean().astype(float)
            if len(means):
                (line,) = axes.plot(means.index.astype(int), means, "osD^v"[number], color=f"C{number}")
                line.set(linestyle="-", markersize=4)
                handles[_in_words(name)] = line
        axes.axhline(0.5, **DOTTED)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    figure.supxlabel("layer", fontsize="medium")
    figure.supylabel("area under the ROC curve", fontsize="medium")
    legend_below(figure, handles)
    return figure
