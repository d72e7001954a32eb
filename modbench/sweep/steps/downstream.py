"""Scores on one of lm-eval's tasks, of the trained model and the untrained one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modbench.model.language_model import LanguageModel
from modbench.records.metrics import METRICS
from modbench.records.probes import leak_verdict
from modbench.sweep.run_job import RunWork

if TYPE_CHECKING:
    from modbench.evaluate.downstream import Evaluation
    from modbench.evaluate.routed_lm import RoutedLM

#: Folder of lm-eval's own files, next to the weights.
FILES = "lm-eval"


def downstream(
    model: LanguageModel, work: RunWork, settings: dict[str, Any], budget: int
) -> dict[str, Any]:
    """Score the task of ``settings`` (see `modbench.measure.config.MeasureConfig.task`) under the causal
    rule. Write lm-eval's result and sample files into the run's folder.

    Raises:
        UserError: the task can't be evaluated, see `modbench.evaluate.downstream.evaluate`.
        StoppedError: a stop was requested.
    """
    # Imported late: lm-eval takes seconds to import.
    from modbench.evaluate.downstream.files import ResultFiles
    from modbench.evaluate.downstream.table import add_untrained, details, section
    from modbench.evaluate.downstream.validity import batch_shift

    end = next(end for end in work.fields["ends"] if end.budget == budget)
    leak = leak_verdict([*work.findings, *end.audit])
    lm = _adapter(model, work)
    files = ResultFiles(work.folder / FILES, work.job.label, lm, limit=settings.get("limit"))
    scores: dict[str, Any] = {}
    for evaluation in _evaluated(lm, work, settings):
        shift = batch_shift(lm, evaluation.tasks)
        files.add(evaluation, details(evaluation, shift, leak))
        scores |= section(evaluation, shift)
    for evaluation in _evaluated(_adapter(work.fresh_model(random=True), work), work, settings):
        add_untrained(scores, evaluation)
    return {"downstream": scores, "metrics": _metrics(scores)}


def _adapter(model: LanguageModel, work: RunWork) -> "RoutedLM":
    """The model for lm-eval; it reports progress, and stops when a stop is requested."""
    from modbench.evaluate.routed_lm import RoutedLM

    lm = RoutedLM(model, work.data.tokenizer, sequence=work.train.sequence)

    def watch() -> None:
        work.stage.check()
        work.stage.tell()

    lm.watch = watch
    return lm


def _evaluated(lm: "RoutedLM", work: RunWork, settings: dict[str, Any]) -> "Iterator[Evaluation]":
    from modbench.evaluate.downstream import evaluate

    return evaluate(
        lm,
        (settings["task"],),
        limit=settings.get("limit"),
        num_fewshot=settings.get("fewshot"),
        include=Path(settings["include"]) if "include" in settings else None,
        data=work.run.data,
    )


def _metrics(entries: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of the tasks that can rank a table, which are metrics too."""
    metrics: dict[str, Any] = {}
    for task in entries.keys() & METRICS.keys():
        scores = entries[task]["metrics"]["acc"]
        metrics |= {
            task: scores["value"],
            f"{task}_untrained": scores["untrained"],
            f"{task}_chance": scores["chance"],
        }
    return metrics
