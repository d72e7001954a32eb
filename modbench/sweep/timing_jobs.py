"""The jobs of `modbench time`: times of each scheme and repetition, memory, and the machine's
ceilings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modbench.errors import UserError
from modbench.report.record import Measurement, cell_key
from modbench.sweep.cells import Cell, RefusedError, chosen, error_prefix, expand, plugins_of
from modbench.sweep.suite import Suite

#: Fields of [train] that a timing depends on.
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

    kind: Measurement
    cell: Cell
    repetition: int

    @property
    def key(self) -> str:
        return cell_key(self.cell)

    @property
    def identity(self) -> tuple[str, str, int]:
        """The same as `modbench.report.record.TimingRecord.job`."""
        return self.kind, self.key, self.repetition

    def title(self, repetitions: int) -> str:
        words = _WORDS[self.kind]
        if self.cell["router"] is not None:
            words = f"{self.cell['router']['label']}, {words}"
        several = self.kind in ("time", "ceiling") and repetitions > 1
        return f"{words} {self.repetition} of {repetitions}" if several else words


def timing_cells(
    suite: Suite, only: Sequence[str] = (), mistakes: list[RefusedError] | None = None
) -> list[Cell]:
    """The cells of ``suite`` to be timed, without budgets and seeds; all rows, or those in ``only``. If
    ``mistakes`` is given, those of plugins are added to it, and their cells left out.

    Raises:
        UserError: as `modbench.sweep.cells.expand` and `chosen`, or a router that can't take a shape.
    """
    from modbench.train.budget import model_of

    cells: list[Cell] = []
    seen = set[str]()
    for cell in chosen(expand(suite, mistakes), only, mistakes or ()):
        train = {name: cell["train"][name] for name in _TRAIN}
        time = suite.time.resolved(train["sequence"]).of_a_process()
        timed = {"router": cell["router"], "model": cell["model"], "train": train, "time": time}
        if cell_key(timed) in seen:
            continue
        seen.add(cell_key(timed))
        try:
            with error_prefix(suite):
                model_of(timed)
        except UserError as error:
            if mistakes is None or cell["router"]["plugin_sha256"] is None:
                raise
            mistakes.append(RefusedError(str(error), [cell["router"]["label"]]))
        else:
            cells.append(timed)
    if mistakes and not cells:
        raise mistakes[-1]  # of the last row in ``only``, not of another plugin
    return cells


def timing_jobs(cells: Sequence[Cell], repetitions: int) -> list[Job]:
    """All jobs in the order in which they run: repetition by repetition, so that a drift of the machine
    affects all schemes alike; each repetition begins with another scheme; memory comes last."""
    machines = {cell_key(machine): machine for machine in ({**cell, "router": None} for cell in cells)}
    entries = [Job(kind="ceiling", cell=cell, repetition=1) for cell in machines.values()]
    entries += [Job(kind="time", cell=cell, repetition=1) for cell in cells]
    jobs = []
    for number in range(repetitions):
        turn = number % len(entries)
        order = entries[turn:] + entries[:turn]
        jobs += [replace(job, repetition=number + 1) for job in order]
    kinds: tuple[Measurement, ...] = ("training_memory", "inference_memory")
    return jobs + [Job(kind=kind, cell=cell, repetition=1) for cell in cells for kind in kinds]


def worker_spec(job: Job, threads: int) -> dict[str, Any]:
    """The spec of the process of ``job``."""
    return {"kind": job.kind, "cell": job.cell, "plugins": plugins_of(job.cell), "threads": threads}
