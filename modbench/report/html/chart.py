"""The chart of a suite's page: a point per row, by Vega-Lite, with axes that a reader chooses."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from matplotlib.colors import to_hex

from modbench.records.metrics import METRICS

#: Columns of leaderboard.csv that the vertical and the horizontal axis can show.
_QUALITIES = ("heldout_loss", "heldout_bits_per_byte", "modbench_cloze:acc")
_COSTS = (
    *("forward_flops_per_token_realised", "forward_flops_per_token", "budget", "train_step_seconds"),
    *("forward_seconds", "peak_memory_bytes", "active_parameters", "parameters"),
    *("kv_cache_bytes_per_token", "train_tokens"),
)
_START = 'addEventListener("load", () => vegaEmbed("#plot", '
_START += 'JSON.parse(document.getElementById("chart-data").textContent)));'
#: Vega interprets its expressions, since the policy of the page forbids `eval`, and adds no style.
_EMBED = {"ast": True, "renderer": "svg", "bind": "#axes", "actions": False, "defaultStyle": False}
_EMBED |= {"tooltip": {"disableDefaultStyle": True}}


@cache
def chart_script() -> str:
    """Vega, Vega-Lite and vega-embed in one script, which draws the chart once the page is shown."""
    licence = Path(__file__).parent / "assets" / "vendor" / "vega.LICENSE.txt"  # for all copies
    return f"\n/*!\n{licence.read_text()}*/\n{vl_convert.javascript_bundle(_START, '6.4')}\n"


def chart_spec(schemes: pd.DataFrame, colors: Mapping[str, str]) -> dict[str, Any] | None:
    """The chart of the rows of ``schemes`` in Vega-Lite; None unless two rows differ in a quality and in
    a cost. Rows of isoFLOP suites that only try a learning rate are not shown."""
    is_sweep = "on_curve" in schemes
    rows = schemes[schemes["on_curve"]] if is_sweep else schemes
    qualities, costs = _axes(rows, _QUALITIES), _axes(rows, _COSTS)
    if qualities.empty or costs.empty:
        return None
    shapes = rows["shape"].astype("string")
    titles = rows["comparison"].astype(str) + rows["budget"].map(": {:.3g} training FLOPs".format)
    titles += "" if is_sweep else (", " + shapes).fillna("")
    points = pd.concat([qualities, costs], axis="columns").assign(
        scheme=rows["label"],
        name=rows["label"] + ("/" + shapes).fillna(""),
        title=titles,
        ranked=rows["unranked"].isna(),
    )
    rows_of = [*titles[::-1].unique(), *["all"] * (titles.nunique() > 1)]
    choices = {"vertical": [*qualities], "horizontal": [*costs], "rows": rows_of}
    selects = {name: alt.binding_select(options=of, name=name) for name, of in choices.items()}
    params = [alt.param(name, bind=of, value=choices[name][0]) for name, of in selects.items()]
    return dict(_drawn(points, colors).add_params(*params).to_dict())


def _axes(rows: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The metrics ``names`` in which ``rows`` differ, with their units; of a range, its low end."""
    axes = {}
    for name in names:
        column = name if name in rows else f"{name}_median"
        if column in rows and rows[column].nunique() > 1:
            unit = getattr(METRICS.get(name.removesuffix(":acc")), "unit", "FLOP")
            text = f"{name.replace('heldout', 'validation').replace('_', ' ')} ({unit})"
            axes[text] = pd.to_numeric(rows[column].astype("string").str.partition("..")[0])
    return pd.DataFrame(axes)


def _drawn(points: pd.DataFrame, colors: Mapping[str, str]) -> Any:
    """``points``, pale if they are not ranked, and the Pareto front of those that are."""
    base = (
        alt.Chart(alt.Data(values=json.loads(points.to_json(orient="records"))))
        .transform_calculate(x="datum[horizontal]", y="datum[vertical]")
        .transform_filter("datum.x > 0 && isValid(datum.y) && indexof(['all', datum.title], rows) >= 0")
        .transform_calculate(
            loss="test(/cloze/, vertical) ? -datum.y : datum.y",
            text="datum.name + ', ' + datum.title + '\\n' + vertical + ': ' + format(datum.y, '.5~g')"
            " + '\\n' + horizontal + ': ' + format(datum.x, '.4~s')",
        )
    )
    log = alt.Scale(type="log", nice=False, padding=20)
    x = alt.X("x:Q", title=None, scale=log, axis=alt.Axis(format=".3~s"))
    y = alt.Y("y:Q", title=None, scale=alt.Scale(zero=False))
    schemes = [*points["scheme"].unique()]
    hues = alt.Scale(domain=schemes, range=[to_hex(colors.get(name, "0.35")) for name in schemes])
    columns = 2 if max(map(len, schemes)) < 20 else 1  # for a narrow screen
    legend = alt.Legend(orient="bottom", title=None, columns=columns, labelLimit=300)
    front = (
        base.transform_filter("datum.ranked")
        .transform_window(least="min(loss)", sort=[{"field": "x"}, {"field": "loss"}], frame=[None, 0])
        .transform_filter("datum.loss == datum.least")
        .mark_line(interpolate="step-after", strokeDash=[4, 3], color="gray")
        .encode(x, y, order="x:Q")
    )
    marks = base.mark_point(filled=True, size=80).encode(
        *(x, y, alt.Tooltip("text:N"), alt.Description("text:N")),
        alt.Color("scheme:N", scale=hues, legend=legend),
        alt.Shape("scheme:N", scale=alt.Scale(domain=schemes), legend=legend),
        opacity=alt.condition("datum.ranked", alt.value(1), alt.value(0.35)),
    )
    shown: dict[str, Any] = {"width": "container", "height": 340, "background": "transparent"}
    return alt.layer(front, marks, usermeta={"embedOptions": _EMBED}, **shown)
