"""Peak memory of training steps of every built-in scheme: what the plan says of it beforehand, against a
fresh process that takes them, as `modbench time` does."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach

from modbench.model.config import ModelConfig
from modbench.records.run import RouterCode, Timed
from modbench.records.store import read_suite
from modbench.sweep.job import TimeJob
from modbench.sweep.process import Process
from modbench.timing.benchmark_case import BenchmarkTarget
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
    timed = Timed(
        router=RouterCode(name=router, options={}),
        model=SHAPE,
        sequence=TOKENS,
        batch=SEQUENCES,
        precision=precision,
    )
    job = TimeJob(
        suite="bench",
        label=router,
        title=router,
        folder=tmp_path / "job",
        results=tmp_path,
        threads=pytestconfig.getoption("--perf-threads"),
        measures="training_memory",
        session="bench",
        timed=timed,
        time=asdict(TimeConfig()),
        repetition=1,
        machine={},
    )

    def weighed() -> dict[str, Any]:
        job.write()
        how = {"log": job.log, "threads": job.threads, "measures": job.measures}
        worker = Process(job.folder, **how)
        while not worker.ended():
            time.sleep(0.1)
        worker.close()
        return read_suite(tmp_path).timings[-1].measured

    found = benchmark.pedantic(weighed, rounds=1, iterations=1)
    measured = found["measured"]["peak"]
    predicted = predicted_training(BenchmarkTarget.of(timed, TimeConfig()))["peak"]
    # Revisions are compared by it, not by how long the process took.
    benchmark.extra_info["bytes"] = measured
    what = f"peak memory, predicted {predicted / 1e6:.0f} and measured {measured / 1e6:.0f} MB"
    off = 100 * abs(predicted / measured - 1)
    reach(f"{what}, {router}, {precision}", off, 10, "%")
