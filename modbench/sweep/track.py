"""Trackers of a run, in its worker process: TensorBoard, Weights & Biases and trackio."""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from modbench.errors import UserError
from modbench.records.run import Run


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """The [track] table."""

    tensorboard: bool = False  #: event files in the run's folder
    wandb: Literal["off", "offline", "online"] = "off"  #: Weights & Biases
    trackio: bool = False  #: a database in the folder of runs
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
                f"[track] {name} is on, but not installed; in the clone of modbench, run `python -m pip "
                "install '.[track]'`, or turn it off"
            )


class Trackers:
    """The trackers that ``config`` turns on for ``run`` under the ``label`` of a row of ``suite``, with
    its ``folder`` (results/<suite>/runs/<key>), started at its first step. One that raises is dropped,
    with a line on standard error."""

    def __init__(self, config: TrackConfig, suite: str, label: str, run: Run, folder: Path) -> None:
        self._config = config
        self._folder = folder
        title = f"{label}-{run.schedule.budget:.3g}-seed{run.seed}-{folder.name[:8]}"
        self._named: dict[str, Any] = {
            "project": config.project or suite,
            "group": suite,
            "name": re.sub(r"[^\w.+-]+", "_", title),
            "config": run.as_json() | {"label": label},
        }
        #: By name; None: not started. They have the methods ``log`` and ``finish`` of wandb's run.
        self._runs: dict[str, Any] = dict.fromkeys(config.packages())
        self._step = 0

    def event(self, event: Mapping[str, Any]) -> None:
        """Log a training step, a point of the learning curve, or metrics, one step after the last. A
        process that took no step logs none, since that would purge the steps of earlier ones."""
        match event["event"]:
            case "metrics":
                self._step = max(self._step, event["metrics"].get("train_steps", 0))
                medians = {
                    name: value["median"] if isinstance(value, dict) else value
                    for name, value in event["metrics"].items()
                }
                values = {n: v for n, v in medians.items() if isinstance(v, int | float)}
                if self._step:
                    self._log(self._step + 1, "metrics", values)
            case "point":
                self._log(event["step"], "heldout", {"loss": event["heldout_loss"]})
            case "routing" if event["series"] and (event["step"] is not None or self._step):
                step = self._step + 1 if event["step"] is None else event["step"]  # None: at the end
                self._log(step, "routing", event["series"])
            case "step" if "loss" in event:
                self._step = event["step"]
                self._log(event["step"], "train", {n: event[n] for n in ("loss", "flops", "tokens")})

    def close(self) -> None:
        """End the trackers."""
        for run in filter(None, self._runs.values()):
            with suppress(Exception):
                run.finish()

    def _log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        named = {f"{kind}/{name}": float(value) for name, value in values.items()}
        start = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
        for name in list(self._runs):
            try:
                if self._runs[name] is None:
                    self._runs[name] = start[name](self._folder, self._named, self._config, step)
                self._runs[name].log(named, step=step)
            except Exception as error:
                why = " ".join(str(error).split())
                print(f"modbench: {name} failed ({why}); the run goes on without it", file=sys.stderr)
                del self._runs[name]


def _tensorboard(folder: Path, named: Mapping[str, Any], config: TrackConfig, step: int) -> Any:
    """Event files. Later steps of an interrupted process are purged."""
    from torch.utils.tensorboard import SummaryWriter

    place = str(folder / "tensorboard" / named["name"])
    writer = SummaryWriter(place, purge_step=step, flush_secs=10)

    def log(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return SimpleNamespace(log=log, finish=writer.close)


def _wandb(folder: Path, named: Mapping[str, Any], config: TrackConfig, step: int) -> Any:
    """A run in the run's folder, whose id is the run's key."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it uses the network, offline too
    import wandb

    # Captured output and threads that sample the machine would disturb the measurements.
    quiet = {"console": "off", "silent": True, "disable_git": True, "x_disable_stats": True}
    settings = wandb.Settings(**quiet, init_timeout=30, finish_timeout=10)
    own = {"id": folder.name, "dir": str(folder), "mode": config.wandb, "settings": settings}
    return wandb.init(**named, **own, resume="allow")


def _trackio(folder: Path, named: Mapping[str, Any], config: TrackConfig, step: int) -> Any:
    """A run in the database of the folder of runs: a dashboard shows one, so the suite's runs share
    it."""
    os.environ.setdefault("TRACKIO_DIR", str(folder.parent / "trackio"))
    import trackio

    unsampled = {"auto_log_cpu": False, "auto_log_gpu": False}
    return trackio.init(**named, resume="allow", embed=False, **unsampled)
