"""The frames of a suite's isoFLOP curves: points, optima, differences and learning rates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from modbench.analysis.comparison import speed_up
from modbench.analysis.difference import INTERIM
from modbench.analysis.fitted import Curve, Fitted
from modbench.analysis.frames import (
    BEST,
    DENSE,
    LAW_COLUMNS,
    MEANS,
    NOT_SEPARABLE,
    OPTIMA_COLUMNS,
    POINT_COLUMNS,
    RATE_COLUMNS,
    SCATTER_COLUMNS,
    SIZE,
    SURFACE_COLUMNS,
    frame_of,
    tuples_of,
    with_ends,
)
from modbench.analysis.isoflop import FITS, HEADLINE, IsoFlop, Optimum, Place, analyse
from modbench.analysis.learning_rate import Plan, Rates
from modbench.analysis.noise import Noise, Run
from modbench.analysis.pairs import pairs_frame


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The isoFLOP curves of a suite as frames, with the columns of `modbench.analysis.frames` and
    `modbench.analysis.pairs`."""

    runs: pd.DataFrame  #: the runs on the curves, with those that were lost; ``loss``: None if lost
    points: pd.DataFrame  #: a row per size of a curve
    optima: pd.DataFrame  #: a row per scheme, budget, depth and fit
    pairs: pd.DataFrame  #: differences of two schemes
    rates: pd.DataFrame  #: a row per learning rate tried at a middle size
    laws: pd.DataFrame  #: checks of the learning rate's law at other sizes
    scatter: pd.DataFrame  #: a row per budget and depth
    surfaces: pd.DataFrame  #: a row per scheme and depth: L(N, D) = E + A / N^alpha + B / D^beta
    noise: Noise


def curves_of(
    results: pd.DataFrame,
    plans: Mapping[Place, Plan],
    *,
    margin: float,
    compare: Sequence[Mapping[str, Any]] = (),
    interim: bool = False,
    unranked: Iterable[str] = (),
) -> Curves:
    """Analyse the ``results`` of a suite with isoFLOP grids.

    Args:
        plans: how the learning rates of each scheme and depth are chosen
        margin: difference within which schemes are equivalent, in nats per token
        compare: the comparisons that the suite states, in place of those with the dense and the best
            scheme
        interim: runs of the suite are left, so that no difference has a verdict
        unranked: schemes that may not be ranked
    """
    loss = results["heldout_loss"].where(results["status"] == "ok")
    # A budget and a size name the random numbers of their draws, 64 other ones than 64.0.
    known = {name: results[name].dropna() for name in ("budget", SIZE)}
    whole = [name for name, of in known.items() if (of % 1 == 0).all() and max(of, default=0) < 2**63]
    results = results.astype(dict.fromkeys(whole, "Int64")).assign(loss=loss)
    if "budget" not in whole:  # too large for them: what names a budget is a float, too
        plans = {
            of: {**plan, "middle_budget": float(plan["middle_budget"])} for of, plan in plans.items()
        }
        compare = [{**pair, "budget": float(pair["budget"])} for pair in compare]
    by_place: dict[Place, list[Any]] = defaultdict(list)
    rows = tuples_of(results)
    for run in rows:
        by_place[run.scheme, run.depth].append(run)
    rates = {place: Rates.of(by_place[place], plans[place]) for place in sorted(by_place, key=_order)}
    runs = results[[rates[run.scheme, run.depth].is_on_curve(run) for run in rows]]
    points = points_of(runs)
    by_curve: dict[Curve, list[Any]] = defaultdict(list)
    for point in tuples_of(points):
        by_curve[point.scheme, point.depth, point.budget].append(point)
    fitted = Fitted(
        rows=[run for run in tuples_of(runs) if run.loss is not None],
        points=by_curve,
        budgets=sorted({run.budget for run in rows}),
        rates=rates,
        isoflop=analyse(runs_of(runs)),
        comparable={
            place
            for place, of in rates.items()
            if place[0] not in unranked and of.choice.verdict == "interior"
        },
        margin=margin,
        stated=compare,
        untold=INTERIM if interim else "",
    )
    pairs = pairs_frame(fitted.pairs())
    named = [({"scheme": scheme, "depth": depth}, of) for (scheme, depth), of in rates.items()]
    return Curves(
        runs=runs,
        points=points,
        optima=_optima(fitted, pairs),
        pairs=pairs,
        rates=frame_of((name | row for name, of in named for row in of.rows()), RATE_COLUMNS),
        laws=frame_of((name | row for name, of in named for row in of.checks()), LAW_COLUMNS),
        scatter=_scatter(fitted.isoflop),
        surfaces=surfaces_of(fitted.isoflop),
        noise=fitted.isoflop.noise,
    )


def runs_of(results: pd.DataFrame) -> list[Run]:
    """The finished runs of ``results`` for `analyse`, with active parameters on the axis."""
    return [
        Run(
            scheme=run.scheme,
            depth=run.depth,
            budget=run.budget,
            size=getattr(run, SIZE),
            tokens=run.train_tokens,
            loss=run.loss,
            seed=run.seed,
        )
        for run in tuples_of(results[results["loss"].notna()])
    ]


def points_of(runs: pd.DataFrame, types: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The sizes of the curves that ``runs`` make. ``types``: see `frame_of`."""
    shape = ["scheme", "depth", "width", "layers"]
    size = runs.groupby(shape, dropna=False)[SIZE].transform("first")  # that of runs without one, too
    done = runs["loss"].notna()
    measured = {name: runs[name].where(done) for name in MEANS}
    groups = runs.assign(**{SIZE: runs[SIZE].fillna(size)}, **measured, lost=~done)
    groups = groups.groupby([*shape[:2], "budget", *shape[2:], SIZE, "learning_rate"], dropna=False)
    points = groups.agg(
        loss=("loss", "mean"),
        loss_min=("loss", "min"),
        loss_max=("loss", "max"),
        seeds=("loss", "count"),
        **{name: (name, "mean") for name in MEANS},
        lost=("lost", "sum"),
        lost_as=("status", lambda of: "/".join(sorted({*of} - {"ok"})) or None),
    )
    return frame_of(points.reset_index(), POINT_COLUMNS, types)


def surfaces_of(isoflop: IsoFlop) -> pd.DataFrame:
    """The surface of each scheme and depth that has one."""
    rows = (
        {"scheme": scheme, "depth": depth, **vars(surface)}
        for (scheme, depth), surface in isoflop.surfaces.items()
    )
    return frame_of(rows, SURFACE_COLUMNS)


def _scatter(isoflop: IsoFlop) -> pd.DataFrame:
    places = isoflop.misfits.items()
    rows = ({"budget": budget, "depth": depth, **vars(misfit)} for (depth, budget), misfit in places)
    return frame_of(rows, SCATTER_COLUMNS).sort_values(["budget", "depth"], ignore_index=True)


def _order(place: Place) -> tuple[str, int]:
    return place[0], place[1] or 0


def _optima(fitted: Fitted, pairs: pd.DataFrame) -> pd.DataFrame:
    """The frame of optima. ``pairs`` tell which schemes may be the best one."""
    to_best = pairs[(pairs["family"] == "best") & pairs["verdict"].notna()]
    groups = {
        (row.scheme, row.budget): None if row.verdict == "worse" else NOT_SEPARABLE
        for row in tuples_of(to_best)
    }
    if not (fitted.stated or fitted.untold or fitted.isoflop.noise.pooled is None):
        groups |= {(names[0], at): BEST for at in fitted.budgets if (names := fitted.ranked(at))}
    rows = []
    for budget, fit in product(fitted.budgets, FITS):
        position = {scheme: number for number, scheme in enumerate(fitted.ranked(budget, fit), 1)}
        for place in fitted.rates:
            row = {"budget": budget, "fit": fit, "scheme": place[0], "depth": place[1], "best": False}
            if at := fitted.isoflop.optima.get((place[0], budget, fit, place[1])):
                row |= at.row()
            row |= _of_curve(fitted, place, budget, at)
            if row["best"]:
                row |= _of_best(fitted, place[0], budget, fit) | {"position": position.get(place[0])}
                row["group"] = groups.get((place[0], budget)) if fit == HEADLINE else None
            rows.append(row)
    frame = frame_of(rows, OPTIMA_COLUMNS)
    number = frame["fit"].map({name: number for number, name in enumerate(FITS)})
    order = ["budget", "_fit", "position", "loss", "scheme", "depth"]
    return frame.assign(_fit=number).sort_values(order, ignore_index=True).drop(columns="_fit")


def _of_curve(fitted: Fitted, place: Place, budget: int, at: Optimum | None) -> dict[str, Any]:
    """Further columns of a curve and its optimum."""
    rates, noise = fitted.rates[place], fitted.isoflop.noise
    points = fitted.points.get((*place, budget), [])
    widths: dict[int, list[Any]] = defaultdict(list)
    for point in points:
        widths[point.width].append(point)
    lost = {
        width: "/".join(dict.fromkeys(point.lost_as for point in of_width))
        for width, of_width in widths.items()
        if not any(point.seeds for point in of_width)
    }
    because = None
    if at is None and rates.choice.verdict == "open":
        because = "its learning rate is not chosen yet"
    elif at is None and rates.choice.best is None:
        because = (
            f"all learning rates: {'/'.join(sorted({run.status for run in rates.middle.values()}))}"
        )
    floor = noise.of(place[0])
    row = {
        "runs": sum(point.seeds for point in points),
        "sizes": len(widths) - len(lost),
        "sizes_planned": rates.plan.get("sizes"),
        "sizes_lost": ", ".join(f"w{width} {lost[width]}" for width in sorted(lost)) or None,
        "curve_missing_because": because,
        "noise": noise.pooled and noise.pooled.sd,
        "noise_floor": floor and 2 * floor.sd,
        "processor": "; ".join(sorted(fitted.processors(budget, place[0], depth=place[1]))) or None,
        "learning_rate_minimum": rates.choice.verdict,
        "learning_rate_law_loses": max(
            (check["loses"] for check in rates.checks() if check["valid"]), default=None
        ),
    }
    if at and at.active_parameters is not None and at.loss is not None:
        known = sorted({(getattr(of, SIZE), of.forward_flops_per_token) for of in points if of.seeds})
        sizes, flops = np.log(np.array(known, float)).T
        row["forward_flops_per_token"] = float(
            np.exp(np.interp(np.log(at.active_parameters), sizes, flops))
        )
        row["bits_per_byte"] = at.loss * fitted.bits_per_byte
    return row


def _of_best(fitted: Fitted, scheme: str, budget: int, fit: str) -> dict[str, Any]:
    """The speed-up of an optimum over the dense model."""
    if scheme == DENSE or (DENSE, budget, fit, None) not in fitted.isoflop.optima:
        return {}
    if (faster := speed_up(fitted.isoflop, scheme, DENSE, budget, fit)) is None:
        return {}
    row: dict[str, Any] = with_ends("speed_up", faster.factor, faster.interval)
    row["speed_up_bound"] = faster.bound or None
    return row
