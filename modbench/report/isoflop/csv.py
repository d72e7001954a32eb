"""Tables of the CSV files of an isoFLOP sweep: optima, differences and learning rates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from modbench.analysis.comparison import SpeedUp
from modbench.analysis.difference import Difference, Interval
from modbench.analysis.isoflop import FITS, Optimum, rounded
from modbench.report.isoflop.pairs import of_equal_runs, other_pairs, tested_pairs
from modbench.report.isoflop.seconds import SecondsSpeedUp
from modbench.report.isoflop.sweep import DENSE, Line, Sweep
from modbench.report.table import Table


def optima_table(sweep: Sweep) -> Table:
    """One row per budget, scheme and fit."""
    lines = [line for budget in sweep.budgets for fit in FITS for line in sweep.lines(budget, fit)]
    return _table(_optimum_row(sweep, line) for line in lines)


def _optimum_row(sweep: Sweep, line: Line) -> dict[str, Any]:
    optimum, compared = line.optimum, line.difference
    faster, seconds = line.speed_up, line.seconds
    law = sweep.law(optimum.place)
    budget, scatter = int(optimum.budget), optimum.scatter
    noise = sweep.analysis.noise.pooled
    return {
        "budget": optimum.budget,
        "fit": optimum.fit,
        "scheme": optimum.scheme,
        **(_depth_columns(optimum) if sweep.depths else {}),
        "position": line.position,
        "group": line.group or None,
        "verdict": optimum.verdict,
        **_with_ends("loss", optimum.loss, optimum.loss_interval),
        "bits_per_byte": None if optimum.loss is None else optimum.loss * sweep.bits_per_nat_and_byte,
        **_with_ends("active_parameters", optimum.size, optimum.size_interval),
        "tokens": optimum.tokens,
        "forward_flops_per_token": sweep.forward_flops(optimum),
        "interior_share": optimum.interior_share,
        "interval_missing_because": optimum.void or None,
        "noise": noise and noise.sd,
        "noise_used": optimum.spread and optimum.spread.sd,
        "noise_used_freedom": optimum.spread and optimum.spread.freedom,
        "noise_floor": sweep.noise_floor(optimum.scheme),
        "scatter": scatter and scatter.sd,
        "scatter_freedom": scatter and scatter.freedom,
        **_with_ends("difference", *_value(compared)),
        "difference_p": compared and compared.p,
        "difference_p_adjusted": compared and compared.p_adjusted,
        "difference_verdict": compared and compared.verdict,
        "no_verdict_because": (compared and compared.untold) or None,
        "difference_margin": compared and sweep.margin,
        "same_processor_as_dense": line.same_processor if optimum.scheme != DENSE else None,
        "processor": "; ".join(sweep.processors(budget, optimum.scheme)),
        "to_best_p_adjusted": line.to_best and line.to_best.p_adjusted,
        "speed_up": faster and faster.factor,
        "speed_up_bound": (faster and faster.bound) or None,
        **_with_ends("speed_up", faster.factor if faster else None, _known_ends(faster)),
        **_with_ends("speed_up_seconds", seconds.factor if seconds else None, _known_ends(seconds)),
        "speed_up_seconds_missing_because": "; ".join(line.seconds_missing) or None,
        "seconds_per_flop": None
        if optimum.size is None
        else sweep.times.at(optimum.place, optimum.size),
        "dense_seconds_per_flop": seconds and seconds.dense_seconds_per_flop,
        "learning_rate_verdict": sweep.rates[optimum.place].choice.verdict,
        "learning_rate_law_loses": law and law.lost,
    }


def _depth_columns(optimum: Optimum) -> dict[str, Any]:
    """The best depth, the share of the draws in which it is, and the candidates."""
    return {
        "layers": optimum.depth if optimum.loss is not None else None,
        "layers_share": optimum.depth_share,
        "layers_compared": " ".join(map(str, optimum.depths)) or None,
    }


def depths_table(sweep: Sweep) -> Table:
    """One row per budget, fit, scheme and depth; no rows in a suite of one depth."""
    optima = [at for at in sweep.analysis.by_depth if sweep.depths]
    optima.sort(key=lambda at: (at.budget, FITS.index(at.fit), at.scheme, at.depth or 0))
    runs = defaultdict(list)
    for run in sweep.runs:
        runs[(run.scheme, run.depth), run.budget].append(run)
    rows = [
        {
            "budget": at.budget,
            "fit": at.fit,
            "scheme": at.scheme,
            "layers": at.depth,
            "best": sweep.analysis.optimum(at.scheme, at.budget, at.fit).depth == at.depth
            and at.loss is not None,
            "verdict": at.verdict,
            **_with_ends("loss", at.loss, at.loss_interval),
            **_with_ends("active_parameters", at.size, at.size_interval),
            "tokens": at.tokens,
            "forward_flops_per_token": sweep.forward_flops(at),
            "interior_share": at.interior_share,
            "interval_missing_because": at.void or None,
            "scatter": at.scatter and at.scatter.sd,
            "scatter_freedom": at.scatter and at.scatter.freedom,
            "sizes": len({run.size for run in runs[at.place, at.budget]}),
            "runs": len(runs[at.place, at.budget]),
            "learning_rate_verdict": sweep.rates[at.place].choice.verdict,
        }
        for at in optima
    ]
    return _table(rows)


def _table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """A table of ``rows`` whose numbers have the digits that are the same on every processor."""

    def cell(value: Any) -> Any:
        return rounded(value) if isinstance(value, float) else value

    return Table.of([{name: cell(value) for name, value in row.items()} for row in rows])


def _with_ends(
    name: str, value: float | None, interval: Iterable[float | None] | None
) -> dict[str, float | None]:
    """The columns of ``value`` and of the ends of its interval."""
    low, high = interval or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _value(minus: Difference | None) -> tuple[float | None, Interval | None]:
    """The value and the interval of a difference, or of none."""
    return (minus.value, minus.interval) if minus else (None, None)


def _known_ends(speed_up: SpeedUp | SecondsSpeedUp | None) -> list[float | None]:
    """The interval; None for an end beyond the dense model's budgets."""
    ends = (speed_up and speed_up.interval) or (0.0, 0.0)
    return [end if 0 < end < float("inf") else None for end in ends]


def differences_table(sweep: Sweep) -> Table:
    """One row per pair; the budget is empty for pairs of runs with equal settings, and the family for
    those that are not tested."""
    rows = [
        {
            "budget": pair.budget,
            **({"layers": pair.depth} if sweep.depths else {}),
            "scheme": pair.scheme,
            "minus": pair.other,
            **_with_ends("difference", pair.difference.value, pair.difference.interval),
            "p": pair.difference.p,
            "degrees_of_freedom": pair.difference.freedom,
            "family": pair.family or None,
            "p_adjusted": pair.difference.p_adjusted,
            "verdict": pair.difference.verdict,
            "no_verdict_because": pair.difference.untold or None,
            "margin": pair.margin,
            "runs": pair.runs,
            "cells": pair.difference.pairs,
            "lower_in": pair.lower,
            "per_efold_of_size": pair.slope,
            **_with_ends("at_optima", *_value(pair.at_optimum)),
            "same_processor": pair.same_processor,
        }
        for pair in (*tested_pairs(sweep), *other_pairs(sweep), *of_equal_runs(sweep))
    ]
    return _table(rows)


def rates_table(sweep: Sweep) -> Table:
    """One row per learning rate that was tried at a middle size."""
    rows = [
        {
            "scheme": scheme,
            **({} if depth is None else {"layers": depth}),
            "width": rates.plan["middle_width"],
            "budget": rates.plan["middle_budget"],
            "learning_rate": rate,
            "loss": loss,
            "chosen": rate == rates.choice.best,
            "verdict": rates.choice.verdict,
        }
        for (scheme, depth), rates in sweep.rates.items()
        for rate, loss in rates.losses.items()
    ]
    return _table(rows)
