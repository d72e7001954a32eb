"""Peak memory of training steps of every built-in scheme: what the plan says of it beforehand, against a
fresh process that takes them, as `modbench time` does."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.model.config import ModelConfig
from modbench.sweep.worker import run_worker
from modbench.timing.benchmark_target import BenchmarkTarget
from modbench.timing.config import TimeConfig
from modbench.timing.footprint import predicted_training

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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("router", ROUTERS)
def test_predicted_against_measured_peak(
    router: str,
    precision: str,
    benchmark: BenchmarkFixture,
    reach: Reach,
    pytestconfig: pytest.Config,
    tmp_path: Path,
) -> None:
    cell = {
        "router": {"name": router, "options": {}},
        "model": asdict(SHAPE),
        "train": {"batch": SEQUENCES, "sequence": TOKENS, "precision": precision},
        "time": asdict(TimeConfig()),
    }
    threads = pytestconfig.getoption("--perf-threads")
    job = {"job": "peak", "measurement": "training_memory", "plugins": [], "threads": threads}
    spec = {**job, "cell": cell}

    def weighed() -> dict[str, Any]:
        return run_worker(spec, log=tmp_path / "log.txt")

    found = benchmark.pedantic(weighed, rounds=1, iterations=1)
    measured = found["peak"]
    predicted = predicted_training(BenchmarkTarget.of(cell))["peak"]
    assert measured is not None, found
    # Revisions are compared by it, not by how long the process took.
    benchmark.extra_info["bytes"] = measured
    what = f"peak memory, predicted {predicted / 1e6:.0f} and measured {measured / 1e6:.0f} MB"
    off = 100 * abs(predicted / measured - 1)
    reach(f"{what}, {router}, {precision}", off, 10, "%")
