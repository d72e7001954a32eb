"""Expands a suite into cells: one per scheme, shape, budget and seed, with every option resolved; and
gives the jobs of those that have no record yet.

A cell is plain JSON; the hash of its canonical form is the key of its record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from modbench.errors import UserError, known_names
from modbench.model.config import ModelConfig
from modbench.report.record import CellRecord, cell_key
from modbench.report.store import finished, read_suite
from modbench.sweep.engine import Job
from modbench.sweep.isoflop import Point, chosen_rate, middle_of, points, stated
from modbench.sweep.rows import Resolved, Rows
from modbench.sweep.suite import Scheme, Suite
from modbench.train.config import TrainConfig

Cell = dict[str, Any]
#: Statuses of a cell that is done; a failed cell is run again.
DONE = frozenset({"ok", "diverged", "oom"})


def expand(rows: Rows, done: Mapping[str, float | None] | None = None) -> list[Cell]:
    """Return the cells of ``rows`` in the suite's order. A plugin's router that can't take a shape is
    added to the mistakes of ``rows``, and its cells are left out. ``done``: loss by key of the cells
    that are done, which tells the learning rates of isoFLOP grids; None: diverged. Raises UserError: a
    built-in router can't take a shape, or a budget is smaller than one training step; the sentence
    starts with the suite."""
    suite, cells = rows.suite, list[Cell]()
    if suite.isoflop is not None:
        for scheme in suite.schemes:
            if scheme.label in rows.resolved:
                cells += _isoflop_cells(rows, scheme, done or {})
        return _plain(cells)
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
            router = _router(row, label)
            for budget in suite.axes.budgets:
                if budget < flops:
                    raise UserError(
                        f"suite {suite.source}: [sweep] budgets: budget {budget:g} is smaller than one "
                        f"training step of '{label}', which takes {flops:g} FLOPs; raise it there, or "
                        "shrink batch, sequence or model"
                    )
                train = TrainConfig(**{**suite.train, **scheme.train, "budget": budget})
                for seed in suite.axes.seeds:
                    cells.append(_cell(suite, router, asdict(model), asdict(train), seed))
    return _plain(cells)


def _router(row: Resolved, label: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "options": row.options,
        "plugin_sha256": row.plugin_sha256,
        "label": label,
    }


def _cell(suite: Suite, router: Any, model: Any, train: Any, seed: int) -> Cell:
    data, measure = asdict(suite.data), asdict(suite.measure)
    return {
        "router": router,
        "model": model,
        "data": data,
        "train": train,
        "measure": measure,
        "seed": seed,
    }


def _plain(cells: list[Cell]) -> list[Cell]:
    """``cells`` with lists for tuples, as specifications and records have them."""
    return json.loads(json.dumps(cells))  # type: ignore[no-any-return]


def _isoflop_cells(rows: Rows, scheme: Scheme, done: Mapping[str, float | None]) -> list[Cell]:
    """The cells of ``scheme`` that are known now that those of ``done`` are."""
    suite, row = rows.suite, rows.resolved[scheme.label]
    config, seeds = suite.family_of(scheme), suite.axes.seeds
    grids = grids_of(rows, scheme)

    def cell(point: Point) -> Cell:
        label = f"{scheme.label}/w{point.shape.width}"
        own = {"budget": point.budget, "learning_rate": point.learning_rate}
        train = TrainConfig(**{**suite.train, **scheme.train, **own})
        return _cell(suite, _router(row, label), asdict(point.shape), asdict(train), point.seed)

    losses: dict[float, float | None] = {}
    while True:
        known = [(point, cell(point)) for point in points(config, grids, seeds, losses)]
        wanted = chosen_rate(config, losses).wanted
        keys = (
            {point.learning_rate: cell_key(_plain([one])[0]) for point, one in known} if wanted else {}
        )
        fresh = {rate: done[keys[rate]] for rate in wanted if keys[rate] in done}
        if not fresh:
            return [one for _, one in known]
        losses |= fresh


def grids_of(rows: Rows, scheme: Scheme) -> dict[int, list[ModelConfig]]:
    """The isoFLOP grid of ``scheme`` at each budget."""
    shapes = rows.resolved[scheme.label].grids
    found = ([ModelConfig(**shape) for shape in grid] for grid in shapes)
    return dict(zip(rows.suite.axes.budgets, found, strict=True))


def losses_in(folder: Path) -> dict[str, float | None]:
    """The held-out loss by key of the cells that are done in ``folder`` (results/<suite>); None unless
    the run was finished."""
    return {
        record.key: record.metrics.get("heldout_loss") if record.status == "ok" else None
        for record in read_suite(folder).cells
        if record.status in DONE
    }


def chosen(
    cells: Sequence[Cell], labels: Sequence[str], mistakes: Sequence[UserError] = ()
) -> list[Cell]:
    """The cells whose label is in ``labels``; all of them if ``labels`` is empty. A label without a row
    may be of a row that was left out for ``mistakes``. Raises UserError: no row has one of the labels;
    or all chosen rows were left out, with the mistake."""
    known = {cell["router"]["label"] for cell in cells}
    known |= {label.partition("/")[0] for label in known}
    for label in labels:
        if label not in known and not mistakes:
            raise UserError(
                f"--only: no row of the suite is called '{label}'; {known_names(label, known)}"
            )
    found = []
    for cell in cells:
        label = cell["router"]["label"]
        if not labels or label in labels or label.partition("/")[0] in labels:
            found.append(cell)
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
        return cell_record(cell, named | _stated(rows, cell), data, known, *how)

    jobs = []
    for cell in cells_left(cells, folder):
        key = cell_key(cell)
        cell_folder = folder.resolve() / "cells" / key
        spec = {
            "job": "cell",
            "suite": named | _stated(rows, cell),
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


def _stated(rows: Rows, cell: Cell) -> dict[str, Any]:
    """What the record of ``cell`` states of the learning rates of its isoFLOP grids, if it has any."""
    suite = rows.suite
    if suite.isoflop is None:
        return {}
    label = cell["router"]["label"].partition("/")[0]
    scheme = next(one for one in suite.schemes if one.label == label)
    middle = middle_of(grids_of(rows, scheme))
    return {"isoflop": stated(suite.family_of(scheme), middle, suite.axes.seeds[0])}
