"""One cell: train, measure, append the record. Resumes from its own checkpoint.

What a kill or Ctrl-C can cost is the training since the last checkpoint, or the measurements of a
trained model, which are taken again.
"""

import itertools
import signal
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import modbench
from modbench.data.batches import Batches
from modbench.data.token_data import DataConfig, TokenData, load
from modbench.ledger import CONVENTIONS, Phase, Workload
from modbench.measure.audit import Finding, findings
from modbench.measure.audit.finding import unmoved
from modbench.measure.config import MeasureConfig
from modbench.measure.environment import code_version, environment
from modbench.measure.histograms import RoutingHistograms
from modbench.measure.kv_cache import kv_cache_measures
from modbench.measure.loss import (
    SCORING_BATCH,
    HeldoutLoss,
    heldout_loss,
    heldout_windows,
    unigram_loss,
)
from modbench.measure.machine_lock import Quiet
from modbench.measure.memory import KilledError, peak_memory
from modbench.measure.memory_meter import release_memory
from modbench.measure.routing import routing_measures
from modbench.measure.timing import time_model
from modbench.model.config import ModelConfig
from modbench.model.context import Selection
from modbench.report.record import Record, Status, cell_key
from modbench.report.store import ShardWriter
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, check_source, load_plugin
from modbench.sweep.crash import killed_sentence
from modbench.sweep.stage import Say, Stage
from modbench.train import checkpoint
from modbench.train.config import TrainConfig
from modbench.train.loop import DivergedError, StoppedError, Trained, train_model
from modbench.train.numerics import device, make_deterministic, precision
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence


@dataclass
class Measured:
    """What a cell knows so far; a run that breaks off leaves what it had."""

    audit: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    routing: dict[str, Any] = field(default_factory=dict)


def run_cell(spec: dict[str, Any], say: Say) -> Record:
    """Run the cell of ``spec`` (suite, cell, plugins, results, folder, threads) and append its record,
    which is returned. ``say`` hears of phases and steps.

    Raises:
        UserError: a plugin, router or corpus that isn't as the cell says, or a folder that can't be
            written.
        StoppedError: SIGTERM or SIGINT arrived; the state is saved.
    """
    started = datetime.now(UTC)
    torch.set_num_threads(spec["threads"])
    make_deterministic()
    stop = _StopFlag()
    for plugin in spec["plugins"]:
        load_plugin(plugin)
    cell = spec["cell"]
    check_source(cell["router"])
    folder = Path(spec["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    data = load(DataConfig(**cell["data"]))
    measured = Measured()
    status: Status = "ok"
    error = None

    def check() -> None:
        if stop():
            raise StoppedError

    def waits() -> None:
        say({"event": "phase", "phase": "waiting for a timing to end"})

    quiet = Quiet(waits=waits, check=check)
    with ShardWriter(Path(spec["results"])) as shard:
        try:
            _measure(spec, data, measured, quiet, stop, say)
        except DivergedError as reason:
            status, error = "diverged", str(reason)
        except KilledError as reason:
            status, error = "oom", f"{reason}: {killed_sentence(cell)}"
        except Exception as reason:
            failed = failed_allocation(reason)
            if failed is None:
                raise
            status, error = "oom", out_of_memory_sentence(failed)
        finally:
            quiet.close()
        dtype = precision(cell["train"]["precision"], device())
        record = Record(
            suite=spec["suite"],
            cell=cell,
            key=cell_key(cell),
            code=code_version(),
            environment=environment(dtype),
            data={
                "sha256": data.sha256,
                "train_tokens": len(data.train_N),
                "heldout_tokens": len(data.heldout_N),
            },
            audit=measured.audit,
            metrics=measured.metrics,
            curve=measured.curve,
            routing=measured.routing,
            status=status,
            error=error,
            started=started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        shard.append(record)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return record


class _StopFlag:
    """True once SIGTERM or SIGINT has arrived."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: types.FrameType | None) -> None:
        self._asked = True

    def __call__(self) -> bool:
        return self._asked


def _measure(
    spec: dict[str, Any],
    data: TokenData,
    measured: Measured,
    quiet: Quiet,
    stop: Callable[[], bool],
    say: Say,
) -> None:
    cell = spec["cell"]
    config = ModelConfig(**cell["model"])
    train = TrainConfig(**cell["train"])
    measure = MeasureConfig(**cell["measure"])
    router = build_router(cell["router"]["name"], cell["router"]["options"])
    on = device()
    dtype = precision(train.precision, on)

    # A GPU that is shared would lack what this process holds, and a timing there run out of memory.
    stage = Stage(say, stop, quiet if on.type == "cpu" else None)

    def fresh() -> RoutedDecoder:
        return build_model(config, router, cell["seed"]).to(on)

    _train_and_score(spec, data, measured, fresh, stage)

    stage.begin("memory")
    # On a GPU the process that is measured shares the memory with this one, whose model is gone now.
    release_memory(on)
    measured.metrics["peak_memory_bytes"] = peak_memory(spec, spec["threads"])

    stage.begin("waiting for a quiet machine")
    with quiet.alone(stage.check):
        say({"event": "phase", "phase": "timing"})
        measured.metrics |= time_model(
            fresh(), train, dtype=dtype, repeats=measure.timing_repeats, text=data.train_N
        )


def _train_and_score(
    spec: dict[str, Any],
    data: TokenData,
    measured: Measured,
    fresh: Callable[[], RoutedDecoder],
    stage: Stage,
) -> None:
    """All that is asked of the trained model, of which nothing is left in memory when this returns."""
    cell, folder = spec["cell"], Path(spec["folder"])
    config = ModelConfig(**cell["model"])
    train = TrainConfig(**cell["train"])
    measure = MeasureConfig(**cell["measure"])
    dtype = precision(train.precision, device())
    sequence = train.sequence
    windows_WT = heldout_windows(data.heldout_N, sequence=sequence, tokens=measure.heldout_tokens)
    curve_WT = heldout_windows(data.heldout_N, sequence=sequence, tokens=measure.curve_tokens)
    batches = Batches(data.train_N, sequence=sequence, batch=train.batch, seed=cell["seed"])

    def on_curve(model: RoutedDecoder) -> float:
        return heldout_loss(model, curve_WT, data.token_bytes_V, selection="causal").nats_per_token

    stage.begin("train")
    model = fresh()
    costs, elsewise = _costs(model, train)
    measured.metrics |= costs
    trained = train_model(
        model,
        batches,
        train,
        dtype=dtype,
        evaluate=on_curve,
        folder=folder,
        say=stage.say,
        origin=f"text {data.sha256[:12]}, modbench {modbench.__version__} {code_version()['commit']}",
        stop=stage.stopped,
    )
    measured.curve = trained.curve
    measured.metrics |= _spent(trained)
    checkpoint.save_weights(folder / "model.safetensors", model, key=cell_key(cell))

    stage.begin("held-out loss")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    histograms = RoutingHistograms(sequence=sequence, pieces=data.tokenizer.pieces)

    def scored(rule: Selection) -> HeldoutLoss:
        watch = histograms.watch(rule)
        return heldout_loss(model, windows_WT, data.token_bytes_V, selection=rule, watch=watch)

    causal, leaky = scored("causal"), scored("topk")
    measured.routing = histograms.as_dict()
    measured.metrics |= {
        "heldout_loss": causal.nats_per_token,
        "heldout_bits_per_byte": causal.bits_per_byte,
        "heldout_loss_leaky": leaky.nats_per_token,
        "leak": causal.nats_per_token - leaky.nats_per_token,
        "unigram_loss": unigram_loss(data.train_N, windows_WT, config.vocabulary),
        "forward_flops_per_token_realised": causal.realised_flops_per_token,
        "forward_flops_per_token_dispatched": causal.dispatched_flops_per_token,
    }

    measured.metrics |= routing_measures(model, curve_WT)

    # A model that learns from what it is scored on would know the text the second time.
    changed = [name for name, value in model.state_dict().items() if not unmoved(value, before[name])]

    stage.begin("audit")
    # At an odd length, and at the length and batches that scoring and training have.
    shapes = ((3, 63), (SCORING_BATCH, sequence))
    found: list[Finding] = []
    for finding in findings(model, shapes=shapes, trained=(train.batch, sequence)):
        found.append(finding)
        stage.between()
    measured.audit = [finding.as_dict() for finding in found]
    _add_counted_steps(measured.audit, trained, elsewise)
    if not any(finding.failed for finding in found if finding.name == "decode parity"):
        measured.metrics |= kv_cache_measures(model, curve_WT)
    if changed:
        measured.audit[0] |= {"verdict": "failed", "figure": f"scoring changed its state: {changed[0]}"}

    if measure.downstream:
        stage.begin("downstream")
        measured.metrics |= _downstream(cell, model, fresh(), data)


def _costs(model: RoutedDecoder, train: TrainConfig) -> tuple[dict[str, Any], str]:
    """What the options promise, per token of one training batch; and where the ledger says otherwise in
    training mode than in the mode that scores, which it may not: the phase is the load's to say."""
    phases: tuple[Phase, ...] = ("forward", "train")
    loads = {phase: Workload.uniform(train.batch, train.sequence, phase) for phase in phases}
    scoring = {phase: model.eval().ledger(load) for phase, load in loads.items()}
    training = {phase: model.train().ledger(load) for phase, load in loads.items()}
    elsewise = ""
    for phase, convention in itertools.product(loads, CONVENTIONS):
        off = training[phase].total(convention) - scoring[phase].total(convention)
        if off and not elsewise:
            elsewise = f"{off:+d} in nominal {phase} in training mode"
    tokens = train.batch * train.sequence
    return {
        "forward_flops_per_token": _per(scoring["forward"].total("model"), tokens),
        "forward_flops_per_token_full": _per(scoring["forward"].total("full"), tokens),
        "train_flops_per_token": _per(training["train"].total("model"), tokens),
        "parameters": model.parameter_count("total"),
        "active_parameters": model.parameter_count("active"),
    }, elsewise


def _add_counted_steps(audit: list[dict[str, Any]], trained: Trained, elsewise: str) -> None:
    """To what probe 9 found: what was counted of real training steps, and what of them is off."""
    (count,) = (finding for finding in audit if finding["name"] == "count")
    wrong = ", ".join(filter(None, (trained.miscounted, elsewise)))
    if wrong and count["verdict"] == "failed":
        count["figure"] += f"; {wrong}"
    elif wrong:
        count |= {"verdict": "failed", "figure": f"ledger minus counter, FLOPs: {wrong}"}
    elif count["verdict"] == "passed" and trained.counted_steps:
        count["figure"] += f"; and in {trained.counted_steps} steps of training"
    if trained.unseen_steps:
        steps = "1 step was" if trained.unseen_steps == 1 else f"{trained.unseen_steps} steps were"
        count["figure"] += f"; {steps} not counted in training, for want of memory"


def _per(flops: int, tokens: int) -> int | float:
    return flops / tokens if flops % tokens else flops // tokens


def _spent(trained: Trained) -> dict[str, Any]:
    return {
        "train_steps": trained.steps,
        "train_tokens": trained.tokens,
        "train_flops": trained.flops,
        "train_flops_nominal": trained.flops_nominal,
    }


def _downstream(
    cell: dict[str, Any], model: RoutedDecoder, untrained: RoutedDecoder, data: TokenData
) -> dict[str, Any]:
    # Imported late: lm-eval takes seconds to import.
    from modbench.measure.downstream import chance, score

    measure = MeasureConfig(**cell["measure"])

    def scores(scored: RoutedDecoder) -> dict[str, float]:
        return score(
            scored,
            data.tokenizer,
            tasks=measure.downstream,
            limit=measure.downstream_limit,
            sequence=cell["train"]["sequence"],
            data=DataConfig(**cell["data"]),
        )

    trained_scores, untrained_scores = scores(model), scores(untrained)
    found: dict[str, Any] = {}
    for task in measure.downstream:
        found[task] = trained_scores[task]
        found[f"{task}_untrained"] = untrained_scores[task]
        found[f"{task}_chance"] = chance(task)
    return found
