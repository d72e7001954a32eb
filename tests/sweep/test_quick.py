"""The quick suites: sizes and rates that follow from the curves, and rows that both have."""

import csv
from math import exp, log
from pathlib import Path

import numpy as np
import pytest

from modbench.analysis.learning_rate import rate_at
from modbench.model.config import ModelConfig
from modbench.routing.build import outline
from modbench.routing.registry import build_router, preset_options
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Scheme, load_suite
from modbench.sweep.wanted import expand

CURVES = Path(__file__).parents[2] / "results" / "isoflop-cpu"
QUICK = load_suite("quick")


def lines(name: str, scheme: Scheme) -> list[dict[str, str]]:
    with (CURVES / name).open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["scheme"] == scheme.label]


@pytest.mark.parametrize("scheme", QUICK.schemes, ids=lambda scheme: scheme.label)
def test_width_and_rate_of_a_row_are_those_that_its_curves_suggest(scheme: Scheme) -> None:
    optima = [line for line in lines("optima.csv", scheme) if line["fit"] == "parabola"]
    budgets, sizes = (
        [log(float(line[name])) for line in optima] for name in ("budget", "active_parameters")
    )
    slope, offset = np.polyfit(budgets, sizes, 1)
    (budget,) = QUICK.axes.budgets
    parameters = exp(offset + slope * log(budget))
    router = build_router(*preset_options(scheme.router))
    model = QUICK.shape_of(scheme)
    assert isinstance(model, ModelConfig)

    def distance(width: int) -> float:
        shape = ModelConfig(vocabulary=512, width=width, layers=4, heads=2)
        return abs(outline(shape, router).parameter_count("active") - parameters)

    assert model.width == min(range(24, 65, 4), key=distance)
    (chosen,) = (line for line in lines("learning_rates.csv", scheme) if line["chosen"] == "True")
    rate = rate_at(float(chosen["learning_rate"]), int(chosen["width"]), model.width, -0.5)
    assert scheme.train == {"learning_rate": rate}


def test_quick_scores_has_the_runs_of_quick_and_one_seed_more() -> None:
    quick, scores = (expand(resolve(load_suite(name))) for name in ("quick", "quick-scores"))
    assert [(w.label, w.run.key) for w in quick] == [
        (w.label, w.run.key) for w in scores if w.run.seed != 2
    ]
    assert len(scores) == len(quick) * 3 // 2
