"""The jobs of `modbench time`: times of each scheme and repetition, memory, and the machine's
ceilings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, kw_only=True)
class TimedProcess:
    """One process of a timing run."""

    measurement: str  #: time, ceiling, training_memory or inference_memory
    cell: Cell
    repetition: int

    @property
    def key(self) -> str:
        return cell_key(self.cell)

    @property
    def label(self) -> str:
        """Its place in the run."""
        return self.cell["router"]["label"] if self.cell["router"] else "the machine"

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
    """All jobs in the order in which they run: repetition by repetition, so that a drift of the machine
    affects all schemes alike; each repetition begins with another scheme; memory comes last."""
    machines = {cell_key(machine): machine for machine in ({**cell, "router": None} for cell in cells)}
    entries = [
        TimedProcess(measurement="ceiling", cell=cell, repetition=1) for cell in machines.values()
    ]
    entries += [TimedProcess(measurement="time", cell=cell, repetition=1) for cell in cells]
    jobs = []
    for number in range(repetitions):
        turn = number % len(entries)
        order = entries[turn:] + entries[:turn]
        jobs += [replace(job, repetition=number + 1) for job in order]
    kinds = ("training_memory", "inference_memory")
    return jobs + [
        TimedProcess(measurement=kind, cell=cell, repetition=1) for cell in cells for kind in kinds
    ]
