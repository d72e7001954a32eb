"""Trains a run to its budgets, and checks it cheaply: the FLOPs of its first, its last and one random
training step, and the causality and batch invariance of its trained weights."""

from dataclasses import asdict, replace
from typing import Any

import modbench
from modbench.audit import Finding, finding_of
from modbench.audit.warmed import ODD
from modbench.data.batches import Batches
from modbench.ledger import Workload
from modbench.measure.environment import code_version
from modbench.measure.loss import heldout_loss
from modbench.routing.build import RoutedDecoder
from modbench.sweep.run_job import RunJob
from modbench.train import checkpoint
from modbench.train.config import TrainConfig
from modbench.train.loop import End, Trained, train_model
from modbench.trained.weights_folder import Description, weights_of, write_description

#: Probes that are run again on trained weights.
TRAINED = ("causal", "batch-invariant")


def train(job: RunJob) -> None:
    """Train; store weights, costs, the learning curve, and what each budget took with its findings.

    Raises:
        StoppedError: a stop was requested; the state of training is saved.
        DivergedError: a loss or a weight is not finite.
    """
    model = job.fresh_model()
    run = job.run
    job.fields["flops_source"] = model.flops_source
    job.fields["metrics"] = _costs(model, job.train)
    curve_WT = job.windows(job.spec["curve_tokens"])
    token_bytes_V = job.data.token_bytes_V

    def evaluate(model: RoutedDecoder) -> float:
        return heldout_loss(model, curve_WT, token_bytes_V, selection="causal").nats_per_token

    def say(event: dict[str, Any]) -> None:
        if event["event"] == "point":
            keep = None if job.spec["keep"] == "all" else job.spec["points"] or 0
            checkpoint.save_point(job.folder, model, step=event["step"], keep=keep, key=run.key)
        job.say(event)

    def at_end(end: End) -> None:
        checkpoint.save_weights(weights_of(job.folder, run, end.budget), model, key=run.key)

    trained = train_model(
        model,
        Batches(
            job.data.train_N,
            sequence=job.train.sequence,
            batch=job.train.batch,
            seed=run.seed,
        ),
        job.train,
        run.schedule,
        dtype=job.dtype,
        evaluate=evaluate,
        folder=job.folder,
        say=say,
        at_end=at_end,
        origin=f"text {job.data.sha256[:12]}, modbench {modbench.__version__} "
        f"{code_version()['commit']}",
        stop=job.stage.stopped,
        clock=job.stage.seconds_of_step,
    )
    job.stage.seconds["train"] += trained.earlier_seconds
    job.fields["curve"] = trained.curve
    if trained.left_behind:
        job.fields["left_behind"] = trained.left_behind
    tokenizer = job.data.tokenizer
    description = Description(
        suite=job.spec["suite"],
        label=job.spec["label"],
        run=run,
        merges=tokenizer.merges,
        tokenizer_text=tokenizer.text,
    )
    write_description(job.folder, description)
    job.stage.begin("checks")
    counted = counted_steps(trained)
    ends = []
    for end in trained.ends:
        findings = [*of_trained(job.trained_model(end.budget)), counted]
        ends.append(asdict(end) | {"audit": [asdict(finding) for finding in findings]})
    job.fields["ends"] = ends


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


def of_trained(model: RoutedDecoder) -> list[Finding]:
    """Findings of the probes that are run again on trained weights."""
    findings = (finding_of(name, model, ODD) for name in TRAINED)
    return [replace(finding, figure=f"trained weights: {finding.figure}") for finding in findings]


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
