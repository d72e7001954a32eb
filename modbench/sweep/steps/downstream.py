"""Step ``downstream``: scores on lm-eval's tasks, of the trained and of the untrained model."""

import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modbench.data.config import DataConfig
from modbench.report.metrics import METRICS
from modbench.report.store import write_files
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun

if TYPE_CHECKING:
    from modbench.measure.downstream import Evaluation
    from modbench.measure.routed_lm import RoutedLM

#: In the cell's folder, next to the weights: lm-eval's own files, and the scores of single items.
FILES, ITEMS = "lm-eval", "items.npz"
_TOLD_SECONDS = 5.0


def downstream(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Score each task of ``[measure] downstream`` under the causal rule, for the record. Write lm-eval's
    result and sample files and the scores of single items into the cell's folder.

    Raises:
        UserError: a task can't be evaluated, see `modbench.measure.downstream.evaluate`.
        StoppedError: a stop was requested.
    """
    if not cell.measure.downstream:
        return {}
    # Imported late: lm-eval takes seconds to import.
    from modbench.analysis.items_file import items_bytes
    from modbench.measure.downstream.files import ResultFiles
    from modbench.measure.downstream.section import add_untrained, columns_of, section
    from modbench.measure.downstream.table import details

    folder = cell.folder / FILES
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    lm = _adapter(model, cell)
    files = ResultFiles(folder, cell.cell["router"]["label"], lm, limit=cell.measure.downstream_limit)
    found: dict[str, Any] = {}
    items: dict[str, Any] = {}
    for evaluation in _evaluated(lm, cell):
        files.add(evaluation, details(evaluation, None, "in the record"))
        found |= section(evaluation)
        items |= columns_of(evaluation)
    write_files(cell.folder, {ITEMS: items_bytes(items)})
    for evaluation in _evaluated(_adapter(cell.fresh_model(), cell), cell):
        add_untrained(found, evaluation)
    cell.found["downstream"] = found
    return _metrics(found)


def _adapter(model: RoutedDecoder, cell: CellRun) -> "RoutedLM":
    """The model for lm-eval; it reports progress, and stops when a stop is requested."""
    from modbench.measure.routed_lm import RoutedLM

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
    from modbench.measure.downstream import evaluate

    measure = cell.measure
    return evaluate(
        lm,
        measure.downstream,
        limit=measure.downstream_limit,
        num_fewshot=measure.downstream_fewshot,
        data_dir=measure.data_dir,
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
