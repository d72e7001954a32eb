"""Expands a suite into cells: one per scheme, shape, budget and seed, with every option resolved; and
gives the jobs of those that have no record yet.

A cell is plain JSON; the hash of its canonical form is the key of its record.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from modbench.errors import UserError, known_names
from modbench.report.record import CellRecord, cell_key
from modbench.report.store import finished
from modbench.sweep.engine import Job
from modbench.sweep.rows import Rows
from modbench.train.config import TrainConfig

Cell = dict[str, Any]
#: Statuses of a cell that is done; a failed cell is run again.
DONE = frozenset({"ok", "diverged", "oom"})


def expand(rows: Rows) -> list[Cell]:
    """Return the cells of ``rows`` in the suite's order. A plugin's router that can't take a shape is
    added to the mistakes of ``rows``, and its cells are left out. Raises UserError: a built-in router
    can't take a shape, or a budget is smaller than one training step; the sentence starts with the
    suite."""
    suite, cells = rows.suite, list[Cell]()
    for number, (size, model) in enumerate(suite.shapes.items()):
        for scheme in suite.schemes:
            row = rows.resolved.get(scheme.label)
            if row is None:  # its plugin has a mistake
                continue
            label = f"{scheme.label}/{size}" if size else scheme.label
            flops = row.flops[number]
            if isinstance(flops, str):
                mistake = UserError(f"suite {suite.source}: row '{label}': {flops}")
                if row.plugin is None:
                    raise mistake
                rows.mistakes.append(mistake)
                continue
            router = {
                "name": row.name,
                "options": row.options,
                "plugin_sha256": row.plugin_sha256,
                "label": label,
            }
            for budget in suite.axes.budgets:
                if budget < flops:
                    raise UserError(
                        f"suite {suite.source}: [sweep] budgets: budget {budget:g} is smaller than one "
                        f"training step of '{label}', which takes {flops:g} FLOPs; raise it there, or "
                        "shrink batch, sequence or model"
                    )
                train = TrainConfig(**{**suite.train, **scheme.train, "budget": budget})
                for seed in suite.axes.seeds:
                    cells.append(
                        {
                            "router": router,
                            "model": asdict(model),
                            "data": asdict(suite.data),
                            "train": asdict(train),
                            "measure": asdict(suite.measure),
                            "seed": seed,
                        }
                    )
    # With lists for tuples, as specifications and records have them.
    return json.loads(json.dumps(cells))  # type: ignore[no-any-return]


def chosen(
    cells: Sequence[Cell], labels: Sequence[str], mistakes: Sequence[UserError] = ()
) -> list[Cell]:
    """The cells whose label is in ``labels``; all of them if ``labels`` is empty. A label without a row
    may be of a row that was left out for ``mistakes``. Raises UserError: no row has one of the labels;
    or all chosen rows were left out, with the mistake."""
    known = {cell["router"]["label"] for cell in cells}
    for label in labels:
        if label not in known and not mistakes:
            raise UserError(
                f"--only: no row of the suite is called '{label}'; {known_names(label, known)}"
            )
    found = [cell for cell in cells if not labels or cell["router"]["label"] in labels]
    if mistakes and not found:
        raise mistakes[0]
    return found


def title(cell: Cell, among: Sequence[Cell]) -> str:
    """The displayed name of ``cell``: its label, with budget and seed if those differ in ``among``."""
    words = [cell["router"]["label"]]
    if len({other["train"]["budget"] for other in among}) > 1:
        words.append(f"{cell['train']['budget']:.3g} FLOPs")
    if len({other["seed"] for other in among}) > 1:
        words.append(f"seed {cell['seed']}")
    return ", ".join(words)


def cells_left(cells: Sequence[Cell], folder: Path) -> list[Cell]:
    """The cells without a record in ``folder`` (results/<suite>) whose status is done and whose audit is
    stored. Raises UserError: a record line is corrupt."""
    lines = finished(folder)
    audits = {line.key for line in lines if line.kind == "audit"}
    done = {
        line.key
        for line in lines
        if line.kind == "cell" and line.status in DONE and line.audit_key in (None, *audits)
    }
    return [cell for cell in cells if cell_key(cell) not in done]


def cell_jobs(
    cells: Sequence[Cell], rows: Rows, folder: Path, data: dict[str, Any], threads: int
) -> list[Job]:
    """The jobs of the cells that are left. ``data``: for records of crashed cells."""
    import torch

    from modbench.measure.environment import environment
    from modbench.sweep.cell import cell_record

    suite = rows.suite
    header = suite.header
    named = {"name": header.name, "version": header.version, "rank_by": header.rank_by}

    def crash_record(cell: Cell, *how: Any) -> CellRecord:
        machine = environment(torch.float32)
        # The other entries describe this process, not the one that crashed.
        known = {name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": threads}
        return cell_record(cell, named, data, known, *how)

    jobs = []
    for cell in cells_left(cells, folder):
        key = cell_key(cell)
        cell_folder = folder.resolve() / "cells" / key
        spec = {
            "job": "cell",
            "suite": named,
            "cell": cell,
            "track": asdict(suite.track),
            "plugins": rows.plugins_of(cell),
            "results": str(folder.resolve()),
            "folder": str(cell_folder),
            "threads": threads,
        }
        jobs.append(
            Job(
                identity=("cell", key, None, None, None),
                title=title(cell, cells),
                spec=spec,
                log=cell_folder / "log.txt",
                crash_record=partial(crash_record, cell),
            )
        )
    return jobs
