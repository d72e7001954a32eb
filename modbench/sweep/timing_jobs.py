"""The processes of a timing run: times of each scheme and repetition, memory, and the machine's
ceilings."""

from collections.abc import Sequence
from typing import NamedTuple

from modbench.report.record import cell_key
from modbench.sweep.cells import Cell, chosen, expand
from modbench.sweep.rows import Rows

#: Fields of [train] that a timing depends on.
_TRAIN = ("sequence", "batch", "precision")
_WORDS = {
    "time": "times",
    "ceiling": "the machine's ceilings",
    "training_memory": "memory of training",
    "inference_memory": "memory of inference",
}


class TimedProcess(NamedTuple):
    """One process of a timing run."""

    measurement: str  #: time, ceiling, training_memory or inference_memory
    key: str  #: cell_key(cell)
    repetition: int
    cell: Cell

    def title(self, repetitions: int) -> str:
        words = _WORDS[self.measurement]
        if self.cell["router"] is not None:
            words = f"{self.cell['router']['label']}, {words}"
        several = self.measurement in ("time", "ceiling") and repetitions > 1
        return f"{words} {self.repetition} of {repetitions}" if several else words


def timing_cells(rows: Rows, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of ``rows`` to be timed, without budgets and seeds; all rows, or those in ``only``.

    Raises:
        UserError: as `modbench.sweep.cells.expand` and `chosen`.
    """
    cells: dict[str, Cell] = {}
    for cell in chosen(expand(rows), only, rows.mistakes):
        train = {name: cell["train"][name] for name in _TRAIN}
        time = rows.suite.time.resolved(train["sequence"]).of_a_process()
        timed = {"router": cell["router"], "model": cell["model"], "train": train, "time": time}
        cells[cell_key(timed)] = timed
    return list(cells.values())


def timing_jobs(cells: Sequence[Cell], repetitions: int) -> list[TimedProcess]:
    """All processes in the order in which they run: repetition by repetition, so that a drift of the
    machine affects all schemes alike; each repetition begins with another scheme; memory comes last."""
    keyed = {cell_key(cell): cell for cell in cells}
    machines = {cell_key(cell): cell for cell in ({**cell, "router": None} for cell in cells)}
    entries = [("ceiling", *item) for item in machines.items()]
    entries += [("time", *item) for item in keyed.items()]
    jobs = []
    for number in range(repetitions):
        turn = number % len(entries)
        for measurement, key, cell in entries[turn:] + entries[:turn]:
            jobs.append(TimedProcess(measurement, key, number + 1, cell))
    kinds = ("training_memory", "inference_memory")
    return jobs + [TimedProcess(kind, key, 1, keyed[key]) for key in keyed for kind in kinds]
