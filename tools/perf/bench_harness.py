"""Cost of a run's training besides its steps and evaluations: data, learning rate, counting (a few
steps under the counter, too), progress, checkpoints."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interleaved import now
from pytest_benchmark.fixture import BenchmarkFixture
from targets import Reach
from training import DTYPES

from modbench.data.batches import Batches
from modbench.ledger import Workload, component
from modbench.measure.loss import heldout_loss, heldout_windows
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router
from modbench.train import loop
from modbench.train.config import TrainConfig
from modbench.train.schedule import Schedule

SHAPE = ModelConfig(vocabulary=2048, width=128, layers=4, heads=4)
SEQUENCES, TOKENS, CURVE_TOKENS = 4, 256, 4096
#: About as many as there, with nominal routing.
STEPS = 200


class Clocked:
    """``run``, and the seconds spent in it; a call under a counter for as long as one without, but for
    the first, which loads libraries and makes kernels."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run, self._counted = run, 0
        self._each: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = now()
        result = self._run(*args, **kwargs)
        if component.active and self._each:
            self._counted += 1
        else:
            self._each.append(now() - start)
        return result

    @property
    def seconds(self) -> float:
        return sum(self._each) + self._counted * statistics.median(self._each)


@pytest.mark.parametrize("precision", DTYPES)
# The last of them routes another number of tokens in each step, and is counted again.
@pytest.mark.parametrize("router", ["vanilla", "mod", "threshold_skip"])
@pytest.mark.usefixtures("as_in_a_cell")
def test_time_between_steps(
    router: str,
    precision: str,
    benchmark: BenchmarkFixture,
    reach: Reach,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text_N = np.random.default_rng(0).integers(SHAPE.vocabulary, size=300_000)
    windows_WT = heldout_windows(text_N, sequence=TOKENS, tokens=CURVE_TOKENS)
    token_bytes_V = np.ones(SHAPE.vocabulary, dtype=np.int64)
    batches = Batches(text_N, sequence=TOKENS, batch=SEQUENCES, seed=0)
    model = build_model(SHAPE, build_router(router))
    budget = STEPS * model.ledger(Workload.uniform(SEQUENCES, TOKENS, "train")).total()
    config = TrainConfig(sequence=TOKENS, batch=SEQUENCES)

    def heldout(model: Decoder) -> float:
        return heldout_loss(model, windows_WT, token_bytes_V, selection="causal").nats_per_token

    steps, evaluations = Clocked(loop.training_step), Clocked(heldout)
    monkeypatch.setattr(loop, "training_step", steps)

    def train() -> None:
        loop.train_model(
            model,
            batches,
            config,
            Schedule(budgets=(budget,)),
            dtype=DTYPES[precision],
            evaluate=evaluations,
            folder=tmp_path,
            say=lambda event: None,
        )

    benchmark.pedantic(train, rounds=1, iterations=1)
    whole = benchmark.stats.stats.total
    between = 100 * (whole - steps.seconds - evaluations.seconds) / whole
    reach(f"harness between steps, of a run's training, {router}, {precision}", between, 2, "%")
    curve = 100 * evaluations.seconds / whole
    reach.shown(f"learning curve, of a run's training, {router}, {precision}", curve, "%")
