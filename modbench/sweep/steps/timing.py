"""Step ``timing``: wall time of a forward pass and of a training step, as `modbench time` takes it."""

from typing import Any

import torch

from modbench.analysis.intervals import summary
from modbench.errors import UserError
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun
from modbench.timing.benchmark_target import BenchmarkTarget
from modbench.timing.clock import timed
from modbench.timing.memory_meter import release_memory
from modbench.timing.system_load import thread_count

_METRICS = {"forward": "forward_seconds", "train": "train_step_seconds"}


def timing(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Times of an untrained model with balanced routing and one thread per core, alone on this machine.

    Raises:
        StoppedError: a stop was requested while this waited for the machine.
        MemoryError: a case ran out of memory.
        UserError: the router's code raised.
    """
    release_memory(cell.device)
    # As in the cell's training.
    numerics = {"compile": cell.train.compile, "deterministic": True}
    time = {"samples": cell.measure.timing_repeats, **numerics}
    target = BenchmarkTarget.of({**cell.cell, "time": time})
    threads, before = thread_count(), torch.get_num_threads()
    with cell.stage.measuring(cell.title):
        torch.set_num_threads(threads)
        try:
            found = timed("time", target, threads, inference=False)
        finally:
            torch.set_num_threads(before)
    for lack in found.get("ran_out", []):
        raise MemoryError(lack["error"])
    for sentence in found.get("failed", []):
        raise UserError(f"router '{cell.router.name}' {sentence}")
    marks = {"loaded": found["machine"]["overloaded"], "threads": threads}
    return {_METRICS[case["phase"]]: summary(case["seconds"]) | marks for case in found["cases"]}
