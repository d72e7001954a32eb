"""Checks the training schedule of a suite. Imports no torch."""

from collections.abc import Sequence

from modbench.errors import UserError
from modbench.measure.config import MeasureConfig
from modbench.train.config import TrainTable


def check_schedule(
    at: str, train: TrainTable, budgets: Sequence[int], measure: MeasureConfig, keep: str
) -> None:
    """Raises UserError: the schedule has no place in the suite, or micro-batches don't make a batch."""
    if train.batch % train.ranks:
        raise UserError(
            f"{at} parallel has {train.ranks} processes; they must divide batch, which is {train.batch}"
        )
    if (train.batch // train.ranks) % train.rows:
        raise UserError(
            f"{at} micro_batch is {train.micro_batch}; it must divide the sequences of a process, which "
            f"are {train.batch // train.ranks}"
        )
    try:
        train.schedule_of(budgets if train.schedule == "trapezoid" else budgets[:1])
    except UserError as error:
        raise UserError(f"{at}: {error}") from error
    if train.schedule == "trapezoid" and measure.downstream_checkpoints is not None:
        raise UserError(
            f"{at} schedule is 'trapezoid', and [measure] downstream_checkpoints needs 'cosine'; remove "
            "one of them"
        )
    if train.schedule == "trapezoid" and keep == "all":
        raise UserError(
            f"{at} schedule is 'trapezoid', whose decays' points can't all be kept; set [keep] "
            "weights = 'budgets', or schedule = 'cosine'"
        )
