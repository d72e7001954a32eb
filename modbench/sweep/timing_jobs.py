"""A suite as what `modbench time` does: a process for each scheme and repetition, its memory, and the
machine's ceilings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modbench.report.line import cell_key
from modbench.report.timing import Kind
from modbench.sweep.cells import Cell, chosen, expand, naming, plugins_of
from modbench.sweep.suite import Suite

#: What of [train] a timing depends on.
_TRAIN = ("sequence", "batch", "precision")
_WORDS = {
    "time": "times",
    "ceiling": "the machine's ceilings",
    "training_memory": "memory of training",
    "inference_memory": "memory of inference",
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One process."""

    kind: Kind
    cell: Cell
    repetition: int

    @property
    def key(self) -> str:
        return cell_key(self.cell)

    @property
    def identity(self) -> tuple[str, str, int]:
        """As `modbench.report.timing.Timing.job`."""
        return self.kind, self.key, self.repetition

    def title(self, repetitions: int) -> str:
        words = _WORDS[self.kind]
        if self.cell["router"] is not None:
            words = f"{self.cell['router']['label']}, {words}"
        several = self.kind in ("time", "ceiling") and repetitions > 1
        return f"{words} {self.repetition} of {repetitions}" if several else words


def timing_cells(suite: Suite, only: Sequence[str] = ()) -> list[Cell]:
    """What is timed of ``suite``, budgets and seeds aside; all of it, or the rows ``only``.

    Raises:
        UserError: as `modbench.sweep.cells.expand` and `chosen`, or a router that can't take a shape.
    """
    from modbench.train.budget import model_of

    cells: dict[str, Cell] = {}
    for cell in chosen(expand(suite), only):
        train = {name: cell["train"][name] for name in _TRAIN}
        time = suite.time.resolved(train["sequence"]).of_a_process()
        timed = {"router": cell["router"], "model": cell["model"], "train": train, "time": time}
        if cell_key(timed) not in cells:
            with naming(suite):
                model_of(timed)
            cells[cell_key(timed)] = timed
    return list(cells.values())


def timing_jobs(cells: Sequence[Cell], repetitions: int) -> list[Job]:
    """All jobs, in the order in which they are done: repetition by repetition, so that a drift of the
    machine hits all schemes alike, each repetition beginning with another scheme; memory last."""
    machines = {cell_key(machine): machine for machine in ({**cell, "router": None} for cell in cells)}
    entries = [Job(kind="ceiling", cell=cell, repetition=1) for cell in machines.values()]
    entries += [Job(kind="time", cell=cell, repetition=1) for cell in cells]
    jobs = []
    for number in range(repetitions):
        turn = number % len(entries)
        order = entries[turn:] + entries[:turn]
        jobs += [replace(job, repetition=number + 1) for job in order]
    kinds: tuple[Kind, ...] = ("training_memory", "inference_memory")
    return jobs + [Job(kind=kind, cell=cell, repetition=1) for cell in cells for kind in kinds]


def worker_spec(job: Job, threads: int) -> dict[str, Any]:
    """What the process of ``job`` is told."""
    return {"kind": job.kind, "cell": job.cell, "plugins": plugins_of(job.cell), "threads": threads}
