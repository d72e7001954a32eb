"""One cell: its steps in order, then its record.

A cell that was killed or stopped resumes from its checkpoint: it loses at most the training since then,
or the measurements of a trained model, which are taken again.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modbench.data.token_data import DataConfig, TokenData, load
from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.measure.environment import code_version, environment
from modbench.measure.loss import heldout_windows
from modbench.model.config import ModelConfig
from modbench.records.metrics import METRICS
from modbench.records.record import CellRecord, Status, cell_key
from modbench.records.store import append_record
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import build_router, check_source, load_plugin
from modbench.sweep.lock import cell_lock
from modbench.sweep.stage import Say, Stage
from modbench.sweep.steps import step
from modbench.sweep.track import TrackConfig, Trackers
from modbench.sweep.worker import stop_signals
from modbench.timing.matmul_rate import matmul_rate
from modbench.train.config import TrainConfig
from modbench.train.loop import DivergedError
from modbench.train.numerics import device, make_deterministic, precision
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence


class CellRun:
    """A cell while it runs: what its steps need, and what they have found.

    ``spec``: suite, cell, plugins, results, folder, threads. A cell that fails keeps what it has found.
    """

    def __init__(self, spec: dict[str, Any], data: TokenData, stage: Stage) -> None:
        self.spec, self.data, self.stage = spec, data, stage
        self.cell: dict[str, Any] = spec["cell"]
        self.results, self.folder = Path(spec["results"]), Path(spec["folder"])
        self.title = f"{spec['suite']['name']}/{self.cell['router']['label']}"
        self.train = TrainConfig(**self.cell["train"])
        self.measure = MeasureConfig(**self.cell["measure"])
        self.router = build_router(self.cell["router"]["name"], self.cell["router"]["options"])
        self.device = device()
        self.dtype = precision(self.train.precision, self.device)
        self.trackers = Trackers(
            TrackConfig(**spec.get("track", {})), spec["suite"]["name"], self.cell, self.folder
        )
        self.decodes = False  #: the audit has found that decoding equals the full forward pass
        self.found: dict[str, Any] = {"metrics": {}}  #: by field of the record

    def fresh_model(self) -> RoutedDecoder:
        """The cell's model before training."""
        config = ModelConfig(**self.cell["model"])
        return build_model(config, self.router, self.cell["seed"]).to(self.device)

    def windows(self, tokens: int) -> np.ndarray:
        """Held-out windows (W, T + 1) of about ``tokens`` tokens."""
        return heldout_windows(self.data.heldout_N, sequence=self.train.sequence, tokens=tokens)

    def say(self, event: dict[str, Any]) -> None:
        """Send an event to the parent and to the trackers."""
        self.stage.say(event)
        self.trackers.event(event)


def run_cell(spec: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run the cell of ``spec`` and append its record; return its status, error and seconds by step.
    ``say`` receives events of steps.

    Raises:
        UserError: a plugin, router or corpus differs from what the cell states, a folder can't be
            written, or another process runs this cell.
        StoppedError: a stop signal arrived; the state is saved.
    """
    stops: list[int] = []
    with stop_signals(stops.append), cell_lock(Path(spec["folder"])):
        started, stage = datetime.now(UTC), Stage(say, lambda: bool(stops))
        prepare_process(spec)
        make_deterministic()
        data = load(DataConfig(**spec["cell"]["data"]))
        run = CellRun(spec, data, stage)
        outcome = _outcome(run)
        record = cell_record(
            run.cell,
            spec["suite"],
            data.summary(),
            environment(run.dtype),
            *outcome,
            started,
            **run.found,
            seconds=stage.end(),
        )
        append_record(run.results, record)
        (run.folder / "checkpoint.pt").unlink(missing_ok=True)
    return {"status": record.status, "error": record.error, "seconds": record.seconds}


def cell_record(
    cell: dict[str, Any],
    suite: dict[str, Any],
    data: dict[str, Any],
    environment: dict[str, Any],
    status: Any,
    error: str | None,
    started: datetime,
    **found: Any,
) -> CellRecord:
    """The record of ``cell``, which finishes now. A cell that crashed has ``found`` nothing."""
    nothing: dict[str, Any] = {"audit": [], "metrics": {}, "curve": [], "routing": {}}
    return CellRecord(
        suite=suite,
        cell=cell,
        key=cell_key(cell),
        code=code_version(),
        environment=environment,
        data=data,
        status=status,
        error=error,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        **nothing | found,
    )


def prepare_process(spec: Mapping[str, Any]) -> None:
    """Set the threads of this process and load the plugins of ``spec``. Raises UserError: a plugin
    raises, or has changed since the run began."""
    torch.set_num_threads(spec["threads"])
    for plugin in spec["plugins"]:
        load_plugin(plugin)
    if spec["cell"]["router"] is not None:
        check_source(spec["cell"]["router"])


def _checked(name: str, metrics: Any) -> dict[str, Any]:
    """The metrics that step ``name`` returned; an error of the step's author names the step."""
    if not isinstance(metrics, dict):
        raise UserError(f"step {name} returned {type(metrics).__name__}; it must be a dict of metrics")
    if unknown := sorted(metrics.keys() - METRICS.keys()):
        raise UserError(
            f"step {name} returned '{unknown[0]}', which is no metric; add it to "
            "modbench/records/metrics.py"
        )
    return metrics


def _outcome(run: CellRun) -> tuple[Status, str | None]:
    """Take the steps; return the record's status and error."""
    try:
        model = run.fresh_model()
        run.say({"event": "machine", "flops_per_second": matmul_rate(run.dtype, run.device)})
        for name in run.measure.steps:
            run.stage.begin(name)
            metrics = _checked(name, step(name)(model, run))
            for metric, value in metrics.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise DivergedError(f"{metric} of the trained model is {value}")
            run.found["metrics"] |= metrics
            run.say({"event": "metrics", "metrics": metrics})
    except DivergedError as reason:
        return "diverged", str(reason)
    except Exception as reason:
        failed = failed_allocation(reason)
        if failed is None:
            raise
        return "oom", out_of_memory_sentence(failed)
    finally:
        run.trackers.close()
    return "ok", None
