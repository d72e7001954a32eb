"""One of the processes that tests start with torchrun: trains a small model and writes what it found."""

import json
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modbench.data.batches import Batches
from modbench.measure.loss import heldout_loss, heldout_windows
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step
from modbench.train.loop import Trained, train_model
from modbench.train.ranks import ALONE, Ranks
from modbench.train.schedule import Schedule

SHAPE = ModelConfig(vocabulary=97, width=128, layers=2, heads=4, mlp_width=256)
TRAIN = TrainConfig(sequence=32, batch=8, learning_rate=1e-3, evaluations=5, precision="float32")
TEXT_N = (np.arange(9000) * 7 % 97).astype(np.uint16)
STEPS = 5


def trained(
    router: str,
    folder: Path,
    *,
    options: dict[str, Any] | None = None,
    ranks: Ranks = ALONE,
    kill_at: int | None = None,
    **train: Any,
) -> tuple[Trained, dict[str, torch.Tensor]]:
    """A model after `STEPS` steps. ``kill_at``: the last process ends itself by SIGKILL at this step, if
    nothing was stored before."""
    torch.set_num_threads(1)
    settings = replace(TRAIN, checkpoint_seconds=1e-6, **train)
    model = build_model(SHAPE, build_router(router, options or {}), seed=1)
    windows_WT = heldout_windows(TEXT_N, sequence=32, tokens=512)
    fresh = not (folder / "checkpoint.pt").exists()

    def evaluate(model: RoutedDecoder) -> float:
        loss = heldout_loss(model, windows_WT, np.ones(97, dtype=np.int64), selection="causal")
        return loss.nats_per_token

    def say(event: dict[str, Any]) -> None:
        at = event.get("step")
        if kill_at is not None and fresh and at == kill_at and ranks.number == ranks.count - 1:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    found = train_model(
        model,
        Batches(TEXT_N, sequence=32, batch=8, seed=1),
        settings,
        Schedule(budgets=(STEPS * flops_per_step(model, settings),)),
        dtype=torch.float32,
        evaluate=evaluate,
        folder=folder,
        say=say,
        ranks=ranks,
    )
    return found, model.state_dict()


if __name__ == "__main__":
    from modbench.train.rank_group import RankGroup

    folder = Path(sys.argv[1])
    wanted = json.loads((folder / "wanted.json").read_text())
    group = RankGroup.joined("cpu")
    found, weights = trained(folder=folder, ranks=group, **wanted)
    if group.leads:
        torch.save(weights, folder / "weights.pt")
        (folder / "found.json").write_text(json.dumps(asdict(found)))
    torch.distributed.destroy_process_group()
