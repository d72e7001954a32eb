"""Step ``train``: train the model to its budget, and check it cheaply: the FLOPs of its first, its last
and one random training step, and the causality and batch invariance of its trained weights."""

from dataclasses import asdict, replace
from typing import Any

import modbench
from modbench.audit import Finding, finding_of
from modbench.audit.warmed import ODD
from modbench.data.batches import Batches
from modbench.ledger import Workload
from modbench.measure.environment import code_version
from modbench.measure.loss import heldout_loss
from modbench.records.record import cell_key
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun
from modbench.train import checkpoint
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained, train_model
from modbench.trained.weights_folder import WEIGHTS, Description, write_description

#: Probes that are run again on trained weights.
TRAINED = ("causal", "batch-invariant")


def train(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Costs, and what training spent. Stores the weights, the learning curve and the findings.

    Raises:
        StoppedError: a stop was requested; the state of training is saved.
        DivergedError: a loss or a weight is not finite.
    """
    cell.found["flops_source"] = model.flops_source
    costs = _costs(model, cell.train)
    curve_WT = cell.windows(cell.measure.curve_tokens)
    token_bytes_V = cell.data.token_bytes_V

    def evaluate(model: RoutedDecoder) -> float:
        return heldout_loss(model, curve_WT, token_bytes_V, selection="causal").nats_per_token

    keep, key = cell.measure.downstream_checkpoints, cell_key(cell.cell)

    def say(event: dict[str, Any]) -> None:
        if event["event"] == "point":
            checkpoint.save_point(cell.folder, model, step=event["step"], keep=keep, key=key)
        cell.say(event)

    trained = train_model(
        model,
        Batches(
            cell.data.train_N,
            sequence=cell.train.sequence,
            batch=cell.train.batch,
            seed=cell.cell["seed"],
        ),
        cell.train,
        dtype=cell.dtype,
        evaluate=evaluate,
        folder=cell.folder,
        say=say,
        origin=f"text {cell.data.sha256[:12]}, modbench {modbench.__version__} "
        f"{code_version()['commit']}",
        stop=cell.stage.stopped,
    )
    cell.found["curve"] = trained.curve
    write_description(
        cell.folder,
        Description(suite=cell.spec["suite"]["name"], cell=cell.cell, merges=cell.data.tokenizer.merges),
    )
    checkpoint.save_weights(cell.folder / WEIGHTS, model, key=key)
    cell.stage.begin("checks")
    cell.found["audit"] = [asdict(finding) for finding in _checks(model, trained)]
    return costs | {
        "train_steps": trained.steps,
        "train_tokens": trained.tokens,
        "train_flops": trained.flops,
        "train_flops_nominal": trained.flops_nominal,
    }


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


def _checks(model: RoutedDecoder, trained: Trained) -> list[Finding]:
    """Findings of probes 1 and 2 on the trained weights, and of probe 9 on training steps."""
    return [*of_trained(model), counted_steps(trained)]


def of_trained(model: RoutedDecoder) -> list[Finding]:
    """Findings of the probes that are run again on trained weights."""
    found = (finding_of(name, model, ODD) for name in TRAINED)
    return [replace(finding, figure=f"trained weights: {finding.figure}") for finding in found]


def counted_steps(trained: Trained) -> Finding:
    """The finding from counting real training steps."""
    counted, wrong = trained.counted_steps, trained.miscounted
    figure = f"training steps in which the ledger equals the counter: {counted}"
    if wrong:
        figure = f"ledger minus counter, FLOPs: {wrong}"
    if again := trained.recharged:
        figure += f"; ledger asked again minus what it charged, FLOPs: {again}"
    if trained.unseen_steps:
        figure += f"; steps not counted, for want of memory: {trained.unseen_steps}"
    return Finding(
        probe=9,
        name="count",
        verdict="failed" if wrong or again else "passed" if counted else "not asked",
        figure=figure,
        ranks=True,
    )
