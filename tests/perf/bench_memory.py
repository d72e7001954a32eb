"""Peak memory of training steps of every built-in scheme: what the plan says of it beforehand, against a
fresh process that takes them."""

from dataclasses import asdict
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.flops.statement import meta_decoder
from modbench.measure.memory import peak_memory
from modbench.model.config import ModelConfig
from modbench.plan.activations import Compute
from modbench.plan.memory import Measured, Recipe
from modbench.train.config import TrainConfig
from modbench.train.numerics import device

ROUTERS = (
    "vanilla",
    "token_choice",
    "expert_choice",
    "mod",
    "mode_staged",
    "mode_integrated",
    "expert_threshold",
    "mixture_of_recursions",
    "relu_routing",
    "threshold_skip",
)
SHAPE = ModelConfig(vocabulary=2048, width=256, layers=8, heads=4)
SEQUENCES, TOKENS = 4, 512


class InFloat32(Recipe):
    """One GPU without autocast, which no recipe of the command line is."""

    @property
    def compute(self) -> Compute:
        return "float32"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", ROUTERS)
def test_predicted_against_measured_peak(
    router: str, precision: Any, benchmark: BenchmarkFixture, reach: Reach, pytestconfig: pytest.Config
) -> None:
    recipe = InFloat32() if precision == "float32" else Recipe()
    kernels = "cpu" if device().type == "cpu" else "gpu"
    measured = Measured(meta_decoder(router, {}, SHAPE), TOKENS, recipe, kernels=kernels)
    predicted = measured.memory(SEQUENCES).total
    train = TrainConfig(budget=1, batch=SEQUENCES, sequence=TOKENS, precision=precision)
    cell = {
        "model": asdict(SHAPE),
        "train": asdict(train),
        "router": {"name": router, "options": {}},
    }
    spec = {"cell": cell, "plugins": []}
    threads = pytestconfig.getoption("--perf-threads")
    found = benchmark.pedantic(peak_memory, args=(spec, threads), rounds=1, iterations=1)
    peak = found["median"]
    # Revisions are compared by it, not by how long the process took.
    benchmark.extra_info["bytes"] = peak
    what = f"peak memory, predicted {predicted / 1e6:.0f} and measured {peak / 1e6:.0f} MB"
    off = 100 * abs(predicted / peak - 1)
    reach(f"{what}, {router}, {precision}", off, 10, "%")
