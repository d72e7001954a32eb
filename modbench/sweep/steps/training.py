"""The training of a run, in one process or in each of several."""

from typing import Any

import modbench
from modbench.data.batches import Batches
from modbench.measure.environment import code_version
from modbench.measure.loss import heldout_loss
from modbench.model.language_model import LanguageModel
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
        origin=f"text {work.data.sha256[:12]}, modbench {modbench.__version__} "
        f"{code_version()['commit']}",
        stop=work.stage.stopped,
        clock=work.stage.seconds_of_step,
        ranks=ranks,
    )


def restored(stored: dict[str, Any]) -> Trained:
    """The result of `train_part`, from JSON."""
    return Trained(**stored | {"end": End(**stored["end"])})
