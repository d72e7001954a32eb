"""Trackers of a run, in its worker process: TensorBoard, Weights & Biases and trackio."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
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
                f"[track] {name} is on, but not installed; run `pip install {name}`, or turn it off"
            )


Log = Callable[[int, Mapping[str, float]], None]


class Trackers:
    """The trackers that ``config`` turns on for ``run`` under the ``label`` of a row of ``suite``, with
    its ``folder`` (results/<suite>/runs/<key>), started at its first step. One that raises is dropped,
    with a line on standard error."""

    def __init__(self, config: TrackConfig, suite: str, label: str, run: Run, folder: Path) -> None:
        self._config = config
        self._folder = folder
        budget = run.schedule.budgets[-1]
        title = f"{label}-{budget:.3g}-seed{run.seed}-{folder.name[:8]}"
        name = re.sub(r"[^\w.+-]+", "_", title)
        self._named: dict[str, Any] = {
            "project": config.project or suite,
            "group": suite,
            "name": name,
            "config": run.as_json() | {"label": label},
        }
        self._on = config.packages()
        self._open: dict[str, tuple[Log, Callable[[], None]]] = {}  #: of the started: log and close
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
        self._each(lambda name: self._open[name][1]() if name in self._open else None)
        self._on = []

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        def log(name: str) -> None:
            if name not in self._open:
                self._open[name] = getattr(self, f"_start_{name}")(step)
            self._open[name][0](step, values)

        self._each(log)
        self._step = max(self._step, step)

    def _each(self, call: Callable[[str], None]) -> None:
        for name in list(self._on):
            try:
                call(name)
            except Exception as error:
                why = " ".join(str(error).split())
                print(f"modbench: {name} failed ({why}); the run goes on without it", file=sys.stderr)
                self._on.remove(name)

    def _start_tensorboard(self, step: int) -> tuple[Log, Callable[[], None]]:
        """Event files in the run's folder. Later steps of an interrupted process are purged."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self._folder / "tensorboard" / self._named["name"]
        writer = SummaryWriter(str(folder), purge_step=step, flush_secs=10)

        def log(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return log, writer.close

    def _start_wandb(self, step: int) -> tuple[Log, Callable[[], None]]:
        """A run in the run's folder, whose id is the run's key."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it sends to the network, offline too
        import wandb

        # Captured output and threads that sample the machine would disturb the measurements.
        quiet = {"console": "off", "silent": True, "disable_git": True, "x_disable_stats": True}
        run = wandb.init(
            **self._named,
            id=self._folder.name,
            dir=str(self._folder),
            mode=self._config.wandb,
            resume="allow",
            settings=wandb.Settings(**quiet, init_timeout=30, finish_timeout=10),
        )
        return lambda step, values: run.log(dict(values), step=step), run.finish

    def _start_trackio(self, step: int) -> tuple[Log, Callable[[], None]]:
        """A run in the database of TRACKIO_DIR, by default results/<suite>/runs/trackio. A dashboard
        shows one database, so the runs share it."""
        os.environ.setdefault("TRACKIO_DIR", str(self._folder.parent / "trackio"))
        import trackio

        unsampled = {"auto_log_cpu": False, "auto_log_gpu": False}
        run = trackio.init(**self._named, resume="allow", embed=False, **unsampled)
        return lambda step, values: run.log(dict(values), step=step), run.finish
