"""Trackers of a cell, in its worker process: TensorBoard, Weights & Biases and trackio."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from modbench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """The [track] table."""

    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"
    trackio: bool = False
    project: str = ""  #: for Weights & Biases and trackio; the suite's name if empty

    def packages(self) -> list[str]:
        """The packages of the trackers that are on."""
        on = {"tensorboard": self.tensorboard, "wandb": self.wandb != "off", "trackio": self.trackio}
        return [name for name, wanted in on.items() if wanted]


def check_trackers(config: TrackConfig) -> None:
    """Raise UserError if the package of a tracker that is on is not installed."""
    for name in config.packages():
        if find_spec(name) is None:
            raise UserError(
                f"[track] {name} is on, but not installed; run `pip install {name}`, or turn it off"
            )


@dataclass(kw_only=True)
class _Tracker:
    """A run of Weights & Biases or trackio; `start` opens ``run``."""

    config: TrackConfig
    folder: Path  #: results/<suite>/cells/<key>
    named: dict[str, Any]  #: project, group, name (unique in the project) and config (the cell)
    run: Any = None

    def start(self, step: int) -> None:
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _TensorBoard(_Tracker):
    """Event files in the cell's folder. Later steps of an interrupted process are purged."""

    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder / "tensorboard" / self.named["name"]
        self.run = SummaryWriter(str(folder), purge_step=step, flush_secs=10)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.run.add_scalar(name, value, step)

    def close(self) -> None:
        self.run.close()


class _WeightsAndBiases(_Tracker):
    """A run in the cell's folder, whose id is the cell's key."""

    def start(self, step: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it sends to the network, offline too
        import wandb

        # Captured output and threads that sample the machine would disturb the measurements.
        quiet = {"console": "off", "silent": True, "disable_git": True, "x_disable_stats": True}
        self.run = wandb.init(
            **self.named,
            id=self.folder.name,
            dir=str(self.folder),
            mode=self.config.wandb,
            resume="allow",
            settings=wandb.Settings(**quiet, init_timeout=30, finish_timeout=10),
        )


class _Trackio(_Tracker):
    """A run in the database of TRACKIO_DIR, by default results/<suite>/cells/trackio. A dashboard shows
    one database, so the cells share it."""

    def start(self, step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(self.folder.parent / "trackio"))
        import trackio

        unsampled = {"auto_log_cpu": False, "auto_log_gpu": False}
        self.run = trackio.init(**self.named, resume="allow", embed=False, **unsampled)


class Trackers:
    """The trackers of a cell, by package, started at its first step. One that raises is dropped, with a
    line on standard error."""

    def __init__(self, trackers: dict[str, _Tracker]) -> None:
        self._trackers = trackers
        self._started = False
        self._step = 0
        self._metrics: dict[str, float] = {}

    def event(self, event: Mapping[str, Any]) -> None:
        """Log a training step or a point of the learning curve; collect metrics for the end."""
        kind = event["event"]
        if kind == "metrics":
            for name, value in event["metrics"].items():
                number = value.get("median") if isinstance(value, dict) else value
                if isinstance(number, int | float):
                    self._metrics[f"metrics/{name}"] = float(number)
            self._step = max(self._step, event["metrics"].get("train_steps", 0))
        elif kind == "point":
            self._log(event["step"], {"heldout/loss": event["heldout_loss"]})
        elif kind == "step" and "loss" in event:
            values = {f"train/{name}": float(event[name]) for name in ("loss", "flops", "tokens")}
            self._log(event["step"], values)

    def close(self) -> None:
        """Log the metrics, one step after the last, and end the trackers. A process that took no step
        logs nothing, since that would purge the steps of earlier ones."""
        if self._metrics and self._step:
            self._log(self._step + 1, self._metrics)
        if self._started:
            self._each(lambda tracker: tracker.close())
        self._trackers = {}

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if not self._started:
            self._each(lambda tracker: tracker.start(step))
        self._each(lambda tracker: tracker.log(step, values))
        self._started, self._step = True, max(self._step, step)

    def _each(self, call: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                why = " ".join(str(error).split())
                print(f"modbench: {name} failed ({why}); the cell goes on without it", file=sys.stderr)
                del self._trackers[name]


def open_trackers(
    config: TrackConfig, *, suite: str, cell: Mapping[str, Any], key: str, folder: Path
) -> Trackers:
    """The trackers that ``config`` turns on for the cell ``key`` of ``suite``, whose folder is
    results/<suite>/cells/<key>."""
    label, budget = cell["router"]["label"], cell["train"]["budget"]
    name = re.sub(r"[^\w.+-]+", "_", f"{label}-{budget:.3g}-seed{cell['seed']}-{key[:8]}")
    named = {"project": config.project or suite, "group": suite, "name": name, "config": dict(cell)}
    kinds = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases, "trackio": _Trackio}
    return Trackers(
        {on: kinds[on](config=config, folder=folder, named=named) for on in config.packages()}
    )
