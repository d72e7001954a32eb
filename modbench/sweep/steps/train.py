"""Trains a run to its budget, and checks it cheaply: the FLOPs of its first, its last and one random
training step, and the causality and batch invariance of its trained weights."""

from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from modbench.audit import Finding, findings
from modbench.audit.warmed import ODD
from modbench.errors import UserError
from modbench.hf.models import outline_of
from modbench.ledger import Workload
from modbench.model.language_model import LanguageModel
from modbench.records.probes import LEAK_PROBES
from modbench.records.record import End
from modbench.records.record import Finding as Recorded
from modbench.sweep.run_job import RunWork
from modbench.sweep.steps.training import train_part
from modbench.train.compiled import programs
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained
from modbench.train.optimizer import optimizer_flops_per_token
from modbench.trained.weights_folder import Description, write_description


def train(work: RunWork) -> None:
    """Train; store weights, costs, the learning curve, and what the budget took with its findings.

    Raises:
        StoppedError: a stop was requested; the state of training is saved.
        DivergedError: a loss or a weight is not finite.
    """
    run = work.run
    # Training builds the model, and a GPU has no room for two.
    model = outline_of(run.model, run.router.name, run.router.options)
    work.fields["flops_source"] = model.flops_source
    work.fields["metrics"] = _costs(model, work.train)
    if work.train.ranks > 1:
        from modbench.sweep.rank import train_by_ranks

        trained = train_by_ranks(work)
    else:
        trained = train_part(work)
    work.stage.seconds["train"] += work.earlier_seconds or 0.0
    work.fields["curve"] = trained.curve
    if (made := programs())["graphs"]:
        work.fields["programs"] = made
    description = Description(
        suite=work.job.suite,
        label=work.job.label,
        run=run,
        tokenizer=work.data.tokenizer,
    )
    write_description(work.folder, description)
    work.stage.begin("checks")
    findings = [*of_trained(work.trained_model()), counted_steps(trained)]
    audit = [Recorded(**asdict(finding)) for finding in findings]
    work.fields["ends"] = [End(**asdict(trained.end), audit=audit)]


def _costs(model: LanguageModel, train: TrainConfig) -> dict[str, Any]:
    """Nominal FLOPs per token of one micro-batch, and parameters. The model is left in training mode."""
    tokens = train.rows * train.sequence
    forward = model.eval().ledger(Workload.uniform(train.rows, train.sequence, "forward"))
    step = model.train().ledger(Workload.uniform(train.rows, train.sequence, "train"))
    costs = {
        "forward_flops_per_token": _per(forward.total("model"), tokens),
        "forward_flops_per_token_full": _per(forward.total("full"), tokens),
        "train_flops_per_token": _per(step.total("model"), tokens),
        "optimizer_flops_per_token": optimizer_flops_per_token(model, train),
        "parameters": model.parameter_count("total"),
    }
    with suppress(UserError):  # unknown for some experts of transformers
        costs["active_parameters"] = model.parameter_count("active")
    return costs


def _per(flops: int, tokens: int) -> int | float:
    return flops / tokens if flops % tokens else flops // tokens


def of_trained(model: LanguageModel) -> list[Finding]:
    """Findings of the probes that are run again on trained weights."""
    found = findings(model, shapes=(ODD,), only=LEAK_PROBES)
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
