"""The frames of isoFLOP curves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from isoflop_made_up import BUDGETS, PLAN, Make, records

from modbench.analysis.curves import Curves, curves_of
from modbench.report.isoflop.source import curve_runs
from modbench.report.runs import runs_frame


def curves(make: Make, factor: int = 1) -> Curves:
    """Those of two schemes, at budgets times ``factor``."""
    found = [replace(result, budget=factor * result.budget) for result in records(make)]
    plan = PLAN | {"middle_budget": factor * BUDGETS[1]}
    frame = curve_runs(found, runs_frame(found))
    frame["train_tokens"] = frame["train_tokens"].fillna(1e6)  # no end of a run has such a budget
    return curves_of(frame, {(scheme, None): plan for scheme in ("vanilla", "mod")}, margin=0.01)


def test_a_notebook_can_draw_the_parabola_of_each_curve(make: Make) -> None:
    frames = curves(make)
    optima = frames.optima[frames.optima["fit"] == "parabola"].set_index(["scheme", "budget"])
    for place, points in frames.points.groupby(["scheme", "budget"]):
        row = optima.loc[place]
        away = np.log(points["active_parameters"].to_numpy(float) / row["active_parameters"])
        square, slope, lowest = np.polyfit(away, points["loss"].to_numpy(float), 2)
        expected = [row["curvature"], 0, row["loss"]]
        assert [square, slope, lowest] == pytest.approx(expected, abs=1e-9)


def test_missing_values_are_missing_and_whole_numbers_whole(make: Make) -> None:
    frames = curves(make)
    types = {
        str(dtype)
        for frame in vars(frames).values()
        if hasattr(frame, "dtypes")
        for dtype in frame.dtypes
    }
    assert types == {"Float64", "Int64", "boolean", "string"}
    assert frames.optima["depth"].isna().all()


def test_budgets_may_be_larger_than_whole_numbers_of_64_bits(make: Make) -> None:
    small, large = curves(make), curves(make, 10**9)
    assert [*large.optima["budget"].unique()] == [1e21, 3e21, 1e22]
    assert large.optima["loss"].tolist() == small.optima["loss"].tolist()
    assert large.pairs["value"].tolist() == small.pairs["value"].tolist()


def test_draws_do_not_depend_on_the_type_of_a_column(make: Make) -> None:
    found = records(make)
    frame = curve_runs(found, runs_frame(found))
    plans = {(scheme, None): PLAN for scheme in ("vanilla", "mod")}
    floats = frame.astype({"budget": "float64", "active_parameters": "float64"})
    one, other = (curves_of(of, plans, margin=0.01).optima for of in (frame, floats))
    pd.testing.assert_frame_equal(one, other)
