"""The steps of a cell: audit its scheme unless that is stored, train a model, score and check it, and
measure memory and time.

W windows, T tokens.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import modbench
from modbench.data.batches import Batches
from modbench.data.token_data import DataConfig, TokenData
from modbench.ledger import Workload
from modbench.measure.config import MeasureConfig
from modbench.measure.environment import code_version
from modbench.measure.histograms import RoutingHistograms
from modbench.measure.kv_cache import kv_cache_measures
from modbench.measure.loss import (
    HeldoutLoss,
    heldout_loss,
    heldout_windows,
    unigram_loss,
)
from modbench.measure.machine_lock import MachineLock
from modbench.measure.memory import peak_memory
from modbench.measure.memory_meter import release_memory
from modbench.measure.routing import routing_measures
from modbench.measure.timing import time_model
from modbench.model.config import ModelConfig
from modbench.model.context import Selection
from modbench.report.record import cell_key
from modbench.report.store import ShardWriter
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router
from modbench.sweep.cell_checks import checks
from modbench.sweep.scheme_audit import audit_of
from modbench.sweep.stage import Stage
from modbench.train import checkpoint
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained, train_model
from modbench.train.numerics import device, precision


@dataclass
class Measured:
    """Results so far; a cell that fails keeps those it has."""

    audit_key: str | None = None
    audit: list[dict[str, Any]] = field(default_factory=list)
    flops_source: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    routing: dict[str, Any] = field(default_factory=dict)


class CellSteps:
    """Runs the steps of the cell of ``spec`` on ``data`` and stores the results in ``measured``; a new
    audit of its scheme goes to ``shard``."""

    def __init__(
        self,
        spec: dict[str, Any],
        data: TokenData,
        measured: Measured,
        stage: Stage,
        shard: ShardWriter,
    ) -> None:
        self.spec, self.data, self.measured, self.stage = spec, data, measured, stage
        self.shard = shard
        self.cell: dict[str, Any] = spec["cell"]
        self.train_config = TrainConfig(**self.cell["train"])
        self.measure_config = MeasureConfig(**self.cell["measure"])
        self.router = build_router(self.cell["router"]["name"], self.cell["router"]["options"])
        self.device = device()
        self.dtype = precision(self.train_config.precision, self.device)

    def run(self, lock: MachineLock) -> None:
        """Run all steps.

        Raises:
            StoppedError: a stop was requested; the state of training is saved.
            DivergedError: the training loss is not finite.
        """
        self.stage.begin("audit")
        audit = audit_of(self.cell, Path(self.spec["results"]), self.shard, self.stage)
        self.measured.audit_key = audit.key
        release_memory(self.device)
        self._train_and_score(decodes=not any(_failed(probe, "decode parity") for probe in audit.audit))
        self.stage.begin("memory")
        release_memory(self.device)  # on a GPU, the measured process shares the memory with this one
        self.measured.metrics["peak_memory_bytes"] = peak_memory(self.spec, self.spec["threads"])
        self.stage.begin("waiting for a quiet machine")
        with lock.exclusive(self.stage.check):
            self.stage.say({"event": "phase", "phase": "timing"})
            self.measured.metrics |= time_model(
                self._fresh_model(),
                self.train_config,
                dtype=self.dtype,
                repeats=self.measure_config.timing_repeats,
                text=self.data.train_N,
            )

    def _fresh_model(self) -> RoutedDecoder:
        config = ModelConfig(**self.cell["model"])
        return build_model(config, self.router, self.cell["seed"]).to(self.device)

    def _windows(self, tokens: int) -> np.ndarray:
        sequence = self.train_config.sequence
        return heldout_windows(self.data.heldout_N, sequence=sequence, tokens=tokens)

    def _train_and_score(self, *, decodes: bool) -> None:
        """The steps on the trained model, which is freed when this returns. The KV cache is measured if
        the scheme ``decodes`` correctly."""
        curve_WT = self._windows(self.measure_config.curve_tokens)
        self.stage.begin("train")
        model = self._fresh_model()
        self.measured.flops_source = model.flops_source
        self.measured.metrics |= _costs(model, self.train_config)
        trained = self._train(model, curve_WT)
        self.stage.begin("held-out loss")
        self._score(model, curve_WT)
        self.stage.begin("checks")
        self.measured.audit = [asdict(finding) for finding in checks(model, trained)]
        if decodes:
            self.measured.metrics |= kv_cache_measures(model, curve_WT)
        if self.measure_config.downstream:
            self.stage.begin("downstream")
            self.measured.metrics |= self._downstream(model)

    def _train(self, model: RoutedDecoder, curve_WT: np.ndarray) -> Trained:
        def evaluate(model: RoutedDecoder) -> float:
            data = self.data
            return heldout_loss(model, curve_WT, data.token_bytes_V, selection="causal").nats_per_token

        folder, sha256 = Path(self.spec["folder"]), self.data.sha256
        train = self.train_config
        trained = train_model(
            model,
            Batches(
                self.data.train_N, sequence=train.sequence, batch=train.batch, seed=self.cell["seed"]
            ),
            train,
            dtype=self.dtype,
            evaluate=evaluate,
            folder=folder,
            say=self.stage.say,
            origin=f"text {sha256[:12]}, modbench {modbench.__version__} {code_version()['commit']}",
            stop=self.stage.stopped,
        )
        self.measured.curve = trained.curve
        self.measured.metrics |= {
            "train_steps": trained.steps,
            "train_tokens": trained.tokens,
            "train_flops": trained.flops,
            "train_flops_nominal": trained.flops_nominal,
        }
        checkpoint.save_weights(folder / "model.safetensors", model, key=cell_key(self.cell))
        return trained

    def _score(self, model: RoutedDecoder, curve_WT: np.ndarray) -> None:
        """Held-out loss under both selection rules, and routing statistics."""
        windows_WT = self._windows(self.measure_config.heldout_tokens)
        histograms = RoutingHistograms(
            sequence=self.train_config.sequence, pieces=self.data.tokenizer.pieces
        )

        def scored(rule: Selection) -> HeldoutLoss:
            watch = histograms.watch(rule)
            return heldout_loss(model, windows_WT, self.data.token_bytes_V, selection=rule, watch=watch)

        causal, leaky = scored("causal"), scored("topk")
        self.measured.routing = histograms.as_dict()
        vocabulary = self.cell["model"]["vocabulary"]
        self.measured.metrics |= {
            "heldout_loss": causal.nats_per_token,
            "heldout_bits_per_byte": causal.bits_per_byte,
            "heldout_loss_leaky": leaky.nats_per_token,
            "leak": causal.nats_per_token - leaky.nats_per_token,
            "unigram_loss": unigram_loss(self.data.train_N, windows_WT, vocabulary),
            "forward_flops_per_token_realised": causal.realised_flops_per_token,
            "forward_flops_per_token_dispatched": causal.dispatched_flops_per_token,
        }
        self.measured.metrics |= routing_measures(model, curve_WT)

    def _downstream(self, model: RoutedDecoder) -> dict[str, Any]:
        # Imported late: lm-eval takes seconds to import.
        from modbench.measure.downstream import score
        from modbench.measure.tasks import CHANCE

        measure = self.measure_config

        def scores(scored: RoutedDecoder) -> dict[str, float]:
            return score(
                scored,
                self.data.tokenizer,
                tasks=measure.downstream,
                limit=measure.downstream_limit,
                sequence=self.train_config.sequence,
                data=DataConfig(**self.cell["data"]),
            )

        trained_scores, untrained_scores = scores(model), scores(self._fresh_model())
        metrics: dict[str, Any] = {}
        for task in measure.downstream:
            metrics[task] = trained_scores[task]
            metrics[f"{task}_untrained"] = untrained_scores[task]
            metrics[f"{task}_chance"] = CHANCE[task]
        return metrics


def _failed(finding: dict[str, Any], name: str) -> bool:
    return bool(finding["name"] == name and finding["verdict"] == "failed")


def _costs(model: RoutedDecoder, train: TrainConfig) -> dict[str, Any]:
    """Nominal FLOPs per token of one training batch, and parameters. The model is left in training
    mode."""
    tokens = train.batch * train.sequence
    forward = model.eval().ledger(Workload.uniform(train.batch, train.sequence, "forward"))
    step = model.train().ledger(Workload.uniform(train.batch, train.sequence, "train"))
    return {
        "forward_flops_per_token": _per(forward.total("model"), tokens),
        "forward_flops_per_token_full": _per(forward.total("full"), tokens),
        "train_flops_per_token": _per(step.total("model"), tokens),
        "parameters": model.parameter_count("total"),
        "active_parameters": model.parameter_count("active"),
    }


def _per(flops: int, tokens: int) -> int | float:
    return flops / tokens if flops % tokens else flops // tokens
