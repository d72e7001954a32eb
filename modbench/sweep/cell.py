"""One cell: audit its scheme unless that is stored, train, measure, append the record.

A cell that was killed or stopped resumes from its checkpoint: it loses at most the training since then,
or the measurements of a trained model, which are taken again.
"""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from modbench.data.token_data import DataConfig, load
from modbench.measure.environment import environment
from modbench.measure.machine_lock import MachineLock
from modbench.measure.memory import KilledError
from modbench.report.record import CellRecord, Status
from modbench.report.store import ShardWriter
from modbench.routing.registry import check_source, load_plugin
from modbench.sweep.cell_record import cell_record
from modbench.sweep.cell_steps import CellSteps, Measured
from modbench.sweep.crash import KILLED
from modbench.sweep.stage import Say, Stage
from modbench.sweep.stop_signals import stop_signals
from modbench.train.loop import DivergedError
from modbench.train.numerics import device, make_deterministic, precision
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence


def run_cell(spec: dict[str, Any], say: Say) -> CellRecord:
    """Run the cell of ``spec`` (suite, cell, plugins, results, folder, threads), append its record and
    return it. ``say`` receives events of phases and steps.

    Raises:
        UserError: a plugin, router or corpus differs from what the cell states, or a folder can't be
            written.
        StoppedError: a stop signal arrived; the state is saved.
    """
    stops: list[int] = []
    with stop_signals(stops.append):
        return _run(spec, say, lambda: bool(stops))


def _run(spec: dict[str, Any], say: Say, stop: Callable[[], bool]) -> CellRecord:
    started = datetime.now(UTC)
    torch.set_num_threads(spec["threads"])
    make_deterministic()
    for plugin in spec["plugins"]:
        load_plugin(plugin)
    check_source(spec["cell"]["router"])
    Path(spec["folder"]).mkdir(parents=True, exist_ok=True)
    data, measured = load(DataConfig(**spec["cell"]["data"])), Measured()
    with ShardWriter(Path(spec["results"])) as shard, closing(MachineLock()) as lock:
        # A paused process would keep its memory on a GPU, where a timing could run out of it.
        stage = Stage(say, stop, lock, pauses=device().type == "cpu")
        status, error = _outcome(CellSteps(spec, data, measured, stage, shard), lock)
        record = cell_record(
            spec["cell"],
            suite=spec["suite"],
            data=data.summary(),
            environment=environment(precision(spec["cell"]["train"]["precision"], device())),
            status=status,
            error=error,
            started=started,
            **vars(measured),
        )
        shard.append(record)
    (Path(spec["folder"]) / "checkpoint.pt").unlink(missing_ok=True)
    return record


def _outcome(steps: CellSteps, lock: MachineLock) -> tuple[Status, str | None]:
    """Run ``steps``; return the record's status and error. Divergence and lack of memory are results."""
    try:
        steps.run(lock)
    except DivergedError as reason:
        return "diverged", str(reason)
    except KilledError as reason:
        return "oom", f"{reason}: {KILLED}"
    except Exception as reason:
        failed = failed_allocation(reason)
        if failed is None:
            raise
        return "oom", out_of_memory_sentence(failed)
    return "ok", None
