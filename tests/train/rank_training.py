"""One of the processes that tests start with torchrun: trains a small model and writes what it found."""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modbench.data.batches import Batches
from modbench.measure.loss import heldout_loss, heldout_windows
from modbench.model.config import ModelConfig
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.depth_router import DepthRouter
from modbench.routing.registry import build_router, preset_options, register_router
from modbench.routing.scorer import LinearScorer
from modbench.routing.tokens import Tokens
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step
from modbench.train.loop import Trained, train_model
from modbench.train.ranks import ALONE, Ranks
from modbench.train.schedule import Schedule

SHAPE = ModelConfig(vocabulary=97, width=64, layers=2, heads=4, mlp_width=288)
TRAIN = TrainConfig(sequence=32, batch=8, learning_rate=1e-3, evaluations=5, precision="float32")
TEXT_N = (np.arange(9000) * 7 % 97).astype(np.uint16)
STEPS = 5


class Branching(LinearScorer):
    """A scorer with a parameter that some passes don't use, and one that none does."""

    def __init__(self, width: int) -> None:
        super().__init__(width, None)
        self.some = torch.nn.Parameter(torch.full((1,), 0.1))
        self.none = torch.nn.Parameter(torch.ones(1))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        scores_BT = super().forward(x_BTD)
        return scores_BT + self.some if x_BTD.flatten()[0] > 0 else scores_BT


@register_router("branching")
@dataclass(frozen=True, kw_only=True)
class BranchingRouter(DepthRouter):
    """A plugin with noise, whose passes differ in the parameters that get a gradient."""

    def scorer(self, model: ModelConfig) -> torch.nn.Module:
        return Branching(model.width)

    def selected(self, scores_BT: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        noise_BT = torch.randn(scores_BT.shape, generator=tokens.generator, device=scores_BT.device)
        return scores_BT + noise_BT > 0.5


def trained(
    scheme: str,
    folder: Path,
    *,
    ranks: Ranks = ALONE,
    steps: int = STEPS,
    kill_at: int | None = None,
    double: bool = False,
    **train: Any,
) -> tuple[Trained, dict[str, torch.Tensor]]:
    """A model after the FLOPs of ``steps`` nominal steps. ``kill_at``: the last process ends itself by
    SIGKILL at this step, if nothing was stored before. ``double``: in float64."""
    torch.set_num_threads(1)
    settings = replace(TRAIN, checkpoint_seconds=1e-6, evaluations=steps, **train)
    shape = replace(SHAPE, layers=4 if scheme.startswith("mixture") else 2)
    model = build_model(shape, build_router(*preset_options(scheme)), seed=1)
    model = model.double() if double else model
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
        Schedule(budgets=(steps * flops_per_step(model, settings),)),
        dtype=torch.float32,
        evaluate=evaluate,
        folder=folder,
        say=say,
        ranks=ranks,
    )
    return found, model.state_dict()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    wanted = json.loads((folder / "wanted.json").read_text())
    group = Ranks.join(60)
    for scheme in wanted.pop("schemes"):
        (folder / scheme).mkdir(exist_ok=True)
        found, weights = trained(scheme, folder / scheme, ranks=group, **wanted)
        if group.leads:
            torch.save(weights, folder / scheme / "weights.pt")
            (folder / scheme / "found.json").write_text(json.dumps(asdict(found)))
    torch.distributed.destroy_process_group()
