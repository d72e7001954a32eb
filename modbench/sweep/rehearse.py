"""`modbench run SUITE --rehearse`: what would end a run after hours ends this command in minutes. For
each scheme, two training steps of its smallest run, with a checkpoint, its weights, the causal rule and
the counter; the FLOPs of a pass of its largest run, from shapes; and on a GPU, two steps of it and their
peak of memory."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from modbench.counting.counter import FlopCounter, seen_conventions
from modbench.data.batches import Batches
from modbench.errors import UserError, several
from modbench.hf.models import model_of, outline_of
from modbench.ledger import Workload
from modbench.measure.loss import heldout_loss, heldout_windows
from modbench.model.language_model import LanguageModel
from modbench.records.run import Run
from modbench.routing.registry import load_plugin
from modbench.sweep.local import refuse_missing_devices
from modbench.sweep.plan import Tell, text_tokens
from modbench.sweep.refuse import refuse_more_passes
from modbench.sweep.rows import Rows
from modbench.sweep.wanted import chosen, expand_planned
from modbench.timing.benchmark_case import BenchmarkTarget
from modbench.timing.config import TimeConfig
from modbench.timing.footprint import release_memory, training_footprint
from modbench.train import checkpoint
from modbench.train.compiled import eager
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step
from modbench.train.loop import train_model
from modbench.train.numerics import device, precision
from modbench.train.out_of_memory import LESS_MEMORY, failed_allocation, out_of_memory_sentence
from modbench.train.schedule import Schedule
from modbench.train.step import passes

#: Tokens and sequences of the rehearsed steps: enough for each layer to route and to drop some.
_SEQUENCE, _BATCH = 128, 2
_STEPS = 2


def rehearse(rows: Rows, only: Sequence[str], tell: Tell) -> int:
    """Rehearse the chosen runs of ``rows`` and tell what was found. Returns 0. Raises UserError: a run
    would be refused or would not fit this machine's GPU, its steps fail, or its FLOPs are not what its
    router states."""
    if rows.mistakes:
        raise rows.mistakes[0]
    suite = rows.suite
    wanted = chosen(expand_planned(rows), only, rows.mistakes)
    tokens = text_tokens(suite, tell)
    if tokens is None:
        tell(f"text '{suite.data.source}' is not prepared: whether it is long enough was not rehearsed")
    else:
        refuse_more_passes(rows, {item.name for item in wanted}, tokens)
    for file in sorted({file for item in wanted for file in rows.plugins_of(item.run.router)}):
        load_plugin(file)
    for scheme in dict.fromkeys(item.scheme for item in wanted):
        runs = [item.run for item in wanted if item.scheme == scheme]
        sizes = {run.model: outline_of(run.model, run.router.name, run.router.options) for run in runs}
        by_size = sorted(runs, key=lambda run: sizes[run.model].parameter_count())
        refuse_missing_devices(runs[0].train.ranks)
        small, large = by_size[0], by_size[-1]
        loss = _small_steps(small)
        counted = _counted(large, sizes[large.model]) + _weighed(large)
        tell(
            f"{scheme}: {several(_STEPS, 'step')} of {_shape(small)}, held-out loss {loss:.2f}; a pass "
            f"of {_shape(large)}: {counted}"
        )
    tell(f"{suite.header.name}: rehearsed, nothing is recorded")
    return 0


def _shape(run: Run) -> str:
    return f"{run.model.width}x{run.model.layers}"


def _small_steps(run: Run) -> float:
    """Take `_STEPS` steps of ``run`` on random text, with a checkpoint, its weights and the causal rule;
    return the held-out loss."""
    router = run.router
    on = device()
    sequence = min(run.train.sequence, _SEQUENCE)
    train = replace(
        run.train, sequence=sequence, batch=_BATCH, micro_batch=1, parallel=None, evaluations=1
    )
    model = model_of(run.model, router.name, router.options, run.seed).to(on)
    text_N = np.random.default_rng(0).integers(run.model.vocabulary, size=50 * sequence, dtype=np.int64)
    windows_WT = heldout_windows(text_N, sequence=sequence, tokens=2 * sequence)
    token_bytes_V = np.ones(run.model.vocabulary, dtype=np.int64)

    def evaluate(model: LanguageModel) -> float:
        return heldout_loss(model, windows_WT, token_bytes_V, selection="causal").nats_per_token

    with tempfile.TemporaryDirectory(prefix="modbench-") as name:
        found = train_model(
            model,
            Batches(text_N, sequence=sequence, batch=_BATCH, seed=run.seed),
            train,
            Schedule(budgets=(_STEPS * flops_per_step(model, train),)),
            dtype=precision(train.precision, on),
            evaluate=evaluate,
            folder=Path(name),
            say=lambda event: None,
        )
        weights = Path(name) / "model.safetensors"
        checkpoint.save_weights(weights, model)
        checkpoint.load_weights(weights, model_of(run.model, router.name, router.options, run.seed))
    if wrong := found.miscounted or found.recharged:
        raise UserError(f"router '{router.name}' at {_shape(run)}: ledger minus counter, FLOPs: {wrong}")
    loss: float = found.curve[-1]["heldout_loss"]
    return loss


def _weighed(run: Run) -> str:
    """Take training steps of ``run`` on this machine's GPU; return their peak of memory in words, empty
    without a GPU. Raises UserError: the GPU has too little."""
    if device().type != "cuda":
        return ""
    try:
        peak = training_footprint(BenchmarkTarget.of(run.timed, TimeConfig()))["peak"]
    except Exception as error:
        if (failed := failed_allocation(error)) is None:
            raise
        raise UserError(
            f"{run.router.name} {_shape(run)}: a step of {run.train.rows} sequences at a time ran "
            f"{out_of_memory_sentence(failed)}; {LESS_MEMORY}"
        ) from error
    release_memory(device())
    return f", a peak of {peak / 2**30:.1f} GiB"


def _counted(run: Run, model: LanguageModel) -> str:
    """Count a pass of ``run`` on the meta device; return its FLOPs in words."""
    train: TrainConfig = run.train
    tokens_BT = torch.zeros(train.rows, train.sequence, dtype=torch.long, device="meta")
    load = Workload.uniform(train.rows, train.sequence, "train", checkpoint=train.recompute)
    try:
        with FlopCounter() as counter:
            _, trace = passes(eager(model.train()), (tokens_BT, tokens_BT), torch.float32, train)
        ledger = model.loss_ledger(replace(load, counts=trace.counts))
    except (RuntimeError, NotImplementedError):  # routing by values, which meta tensors lack
        return f"{model.loss_ledger(load).total('model'):.3g} FLOPs by nominal routing"
    for convention in seen_conventions(torch.device("meta")):
        if off := ledger.total(convention) - counter.under(convention):
            raise UserError(
                f"router '{run.router.name}' at {_shape(run)}: ledger minus counter is {off:+d} FLOPs "
                f"in a pass, convention {convention}"
            )
    return f"{ledger.total('model'):.3g} FLOPs, as counted"
