"""Step ``downstream``: scores on lm-eval's tasks, of the trained model, the untrained one and the last
checkpoints."""

import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modbench.data.config import DataConfig
from modbench.records.leak import leak_verdict
from modbench.records.metrics import METRICS
from modbench.records.record import cell_key
from modbench.records.store import read_suite
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun
from modbench.train.checkpoint import load_weights, point_weights

if TYPE_CHECKING:
    from modbench.evaluate.downstream import Evaluation
    from modbench.evaluate.routed_lm import RoutedLM

#: Folder of lm-eval's own files, next to the weights.
FILES = "lm-eval"
_TOLD_SECONDS = 5.0


def downstream(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Score each task of ``[measure] downstream`` under the causal rule, for the record. Write lm-eval's
    result and sample files into the cell's folder.

    Raises:
        UserError: a task can't be evaluated, see `modbench.evaluate.downstream.evaluate`.
        StoppedError: a stop was requested.
    """
    if not cell.measure.downstream:
        return {}
    # Imported late: lm-eval takes seconds to import.
    from modbench.evaluate.downstream.files import ResultFiles
    from modbench.evaluate.downstream.section import add_checkpoint, add_untrained, section
    from modbench.evaluate.downstream.table import details
    from modbench.evaluate.downstream.validity import batch_shift

    folder = cell.folder / FILES
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    lm = _adapter(model, cell)
    audits = read_suite(cell.results).audits
    leak = leak_verdict(audits, cell.found.get("audit_key"), cell.found["audit"])
    files = ResultFiles(folder, cell.cell["router"]["label"], lm, limit=cell.measure.downstream_limit)
    found: dict[str, Any] = {}
    for evaluation in _evaluated(lm, cell):
        shift = batch_shift(lm, evaluation.tasks)
        files.add(evaluation, details(evaluation, shift, leak))
        found |= section(evaluation, shift)
    for evaluation in _evaluated(_adapter(cell.fresh_model(), cell), cell):
        add_untrained(found, evaluation)
    for earlier in _checkpoints(cell):
        for evaluation in _evaluated(_adapter(earlier, cell), cell):
            add_checkpoint(found, evaluation)
    cell.found["downstream"] = found
    return _metrics(found)


def _checkpoints(cell: CellRun) -> "Iterator[RoutedDecoder]":
    """The models of the last points of the learning curve that are scored, the trained one left out."""
    number = cell.measure.downstream_checkpoints or 1
    for point in cell.found["curve"][-number:-1]:
        model = cell.fresh_model()
        load_weights(point_weights(cell.folder, point["step"]), model, key=cell_key(cell.cell))
        yield model


def _adapter(model: RoutedDecoder, cell: CellRun) -> "RoutedLM":
    """The model for lm-eval; it reports progress, and stops when a stop is requested."""
    from modbench.evaluate.routed_lm import RoutedLM

    lm, told = RoutedLM(model, cell.data.tokenizer, sequence=cell.train.sequence), time.monotonic()

    def watch() -> None:
        nonlocal told
        cell.stage.check()
        if time.monotonic() - told > _TOLD_SECONDS:
            told = time.monotonic()
            cell.stage.tell()

    lm.passes.watch = watch
    return lm


def _evaluated(lm: "RoutedLM", cell: CellRun) -> "Iterator[Evaluation]":
    from modbench.evaluate.downstream import evaluate

    measure = cell.measure
    return evaluate(
        lm,
        measure.downstream,
        limit=measure.downstream_limit,
        num_fewshot=measure.downstream_fewshot,
        data_dir=measure.data_dir,
        include=measure.include,
        data=DataConfig(**cell.cell["data"]),
    )


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of the tasks that can rank a table, which are metrics too."""
    metrics: dict[str, Any] = {}
    for task in found.keys() & METRICS.keys():
        scores = found[task]["metrics"]["acc"]
        metrics |= {
            task: scores["value"],
            f"{task}_untrained": scores["untrained"],
            f"{task}_chance": scores["chance"],
        }
    return metrics
