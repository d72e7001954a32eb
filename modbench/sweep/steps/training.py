"""The training of a run, in one process or in each of several."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import modbench
from modbench.data.batches import Batches
from modbench.measure.environment import code_version
from modbench.measure.loss import heldout_loss
from modbench.measure.traces import traced_point, traced_windows
from modbench.model.language_model import LanguageModel
from modbench.records.line import canonical_json
from modbench.records.store import write_files
from modbench.sweep.job import earlier_points, trace_file
from modbench.sweep.run_job import RunWork
from modbench.train import checkpoint
from modbench.train.loop import End, Trained, train_model
from modbench.train.ranks import ALONE, Ranks
from modbench.trained.weights_folder import WEIGHTS


def train_part(work: RunWork, ranks: Ranks = ALONE) -> Trained:
    """Train the run of ``work`` and store its weights; ``ranks``: the processes that do it together,
    this being one. Raises as `modbench.train.loop.train_model`."""
    model = work.fresh_model()
    run = work.run
    curve_WT = work.windows(work.job.curve_tokens)
    token_bytes_V = work.data.token_bytes_V

    def evaluate(model: LanguageModel) -> float:
        return heldout_loss(model, curve_WT, token_bytes_V, selection="causal").nats_per_token

    def at_end() -> None:
        work.check()
        if ranks.leads:
            checkpoint.save_weights(work.folder / WEIGHTS, model, key=run.key)

    # A checkpoint of a training that took other points is not used: some would be missing.
    points = earlier_points(work.job.measurements)
    traced = f", routing at {points}" if points else ""
    return train_model(
        model,
        Batches(
            work.data.train_N,
            sequence=work.train.sequence,
            batch=work.train.batch,
            seed=run.seed,
        ),
        work.train,
        run.schedule,
        dtype=work.dtype,
        evaluate=evaluate,
        folder=work.folder,
        say=work.say,
        at_end=at_end,
        watch=routing_watch(work, model, points if ranks.leads else []),
        origin=f"text {work.data.sha256[:12]}, modbench {modbench.__version__} "
        f"{code_version()['commit']}{traced}",
        stop=work.stage.stopped,
        clock=work.stage.seconds_of_step,
        ranks=ranks,
    )


def routing_watch(
    work: RunWork, model: LanguageModel, points: Sequence[float]
) -> Callable[[int, float], None]:
    """Return a ``watch`` of `modbench.train.loop.train_model` that writes the routing of ``model`` to a
    file of the run's folder at each of ``points``. A resumed run overwrites what it repeats, with equal
    bytes."""
    windows_WT = traced_windows(work.data.heldout_N, work.train.sequence) if points else np.empty(0)
    last: float | None = None  #: the share at the last call

    def watch(step: int, share: float) -> None:
        nonlocal last
        # A process that resumes begins after the points that an earlier one has written.
        before, last = (share if step else -1.0) if last is None else last, share
        for due in points:
            if before < due <= share:
                point = traced_point(model, windows_WT, due)
                file = trace_file(work.folder, due)
                write_files(file.parent, {file.name: canonical_json(point).encode()})
                work.say({"event": "routing", "step": step, "series": point["series"]})

    return watch


def restored(stored: dict[str, Any]) -> Trained:
    """The result of `train_part`, from JSON."""
    return Trained(**stored | {"end": End(**stored["end"])})
