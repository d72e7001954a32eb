"""Step ``downstream``: scores of lm-eval's tasks, for the trained and for an untrained model."""

from typing import Any

from modbench.data.config import DataConfig
from modbench.routing.build import RoutedDecoder
from modbench.sweep.cell import CellRun


def downstream(model: RoutedDecoder, cell: CellRun) -> dict[str, Any]:
    """Accuracy on each task of ``[measure] downstream``, of the same model before training, and by
    chance."""
    # Imported late: lm-eval takes seconds to import.
    from modbench.measure.downstream import score
    from modbench.measure.tasks import CHANCE

    tasks = cell.measure.downstream

    def scores(scored: RoutedDecoder) -> dict[str, float]:
        return score(
            scored,
            cell.data.tokenizer,
            tasks=tasks,
            limit=cell.measure.downstream_limit,
            sequence=cell.train.sequence,
            data=DataConfig(**cell.cell["data"]),
        )

    metrics: dict[str, Any] = {}
    if tasks:
        trained, untrained = scores(model), scores(cell.fresh_model())
        for task in tasks:
            metrics[task] = trained[task]
            metrics[f"{task}_untrained"] = untrained[task]
            metrics[f"{task}_chance"] = CHANCE[task]
    return metrics
