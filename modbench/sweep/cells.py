"""Expands a suite into cells: one per scheme, shape, budget and seed, with every option resolved; and
gives the jobs of those that have no record yet.

A cell is plain JSON; the hash of its canonical form is the key of its record.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

from modbench.errors import UserError, known_names
from modbench.model.config import ModelConfig
from modbench.records.record import DONE, CellRecord, cell_key
from modbench.records.store import Finished
from modbench.sweep.engine import Job
from modbench.sweep.isoflop import Point, middle_of, points, stated, trials
from modbench.sweep.rows import Resolved, Rows
from modbench.sweep.suite import Scheme, Suite
from modbench.train.config import TrainConfig

Cell = dict[str, Any]


def expand(rows: Rows, done: Mapping[str, float | None] | None = None) -> list[Cell]:
    """Return the cells of ``rows`` in the suite's order; they share their parts. A plugin's router that
    can't take a shape is added to the mistakes of ``rows``, and its cells are left out. isoFLOP cells
    come in blocks (`_in_blocks`). ``done``: loss by key of the cells that
    are done, which tells the learning rates of isoFLOP grids; None: diverged.
    Raises UserError: a built-in router can't take a shape, or a budget is smaller than one training
    step; the sentence starts with the suite."""
    suite = rows.suite
    if suite.isoflop is None:
        return _grid_cells(rows)
    known = (scheme for scheme in suite.schemes if scheme.label in rows.resolved)
    cells = [cell for scheme in known for cell in _isoflop_cells(rows, scheme, done or {})]
    return _in_blocks(suite, cells)


def _in_blocks(suite: Suite, cells: Sequence[Cell]) -> list[Cell]:
    """isoFLOP ``cells`` in the order of a run. All schemes of one budget, seed and size stand together,
    so that one machine runs them. A sweep that takes days compares all schemes with one seed at the
    middle budget, then at smaller ones; further seeds and larger budgets follow. Runs that only check a
    learning rate of another size come last."""
    budgets = sorted(suite.axes.budgets)
    middle = budgets[len(budgets) // 2]
    widths: dict[tuple[str, int], set[int]] = defaultdict(set)
    for cell in cells:
        widths[scheme_of(cell), cell["train"]["budget"]].add(cell["model"]["width"])

    def turn(cell: Cell) -> tuple[bool, int, bool, int]:
        budget, seeds = cell["train"]["budget"], suite.axes.seeds
        sizes = sorted(widths[scheme_of(cell), budget])
        size = sizes.index(cell["model"]["width"])
        chooses_rate = size == len(sizes) // 2
        turn_of_seed = -1 if chooses_rate else len(seeds)
        if cell["seed"] in seeds:
            turn_of_seed = seeds.index(cell["seed"])
        return budget > middle, turn_of_seed, budget != middle, size

    return sorted(cells, key=turn)


def expand_planned(rows: Rows) -> list[Cell]:
    """The cells of ``rows`` once all are known; of isoFLOP grids, as if the middle learning rate is
    best. Raises UserError: see `expand`."""
    trials = expand(rows)
    if rows.suite.isoflop is None:
        return trials
    rates = rows.suite.isoflop.learning_rates
    middle = rates[len(rates) // 2]
    return expand(rows, {cell_key(one): abs(one["train"]["learning_rate"] - middle) for one in trials})


def _grid_cells(rows: Rows) -> list[Cell]:
    """The cells of a suite without isoFLOP grids: schemes times shapes times budgets times seeds."""
    suite, cells = rows.suite, list[Cell]()
    same = _same_for_all(suite)
    for number, size in enumerate(suite.shapes):
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
            router, shape = _router(row, label), asdict(suite.shapes_of(scheme)[size])
            for budget in suite.axes.budgets:
                if budget < flops:
                    raise UserError(
                        f"suite {suite.source}: [sweep] budgets: budget {budget:g} is smaller than one "
                        f"training step of '{label}', which takes {flops:g} FLOPs; raise it there, or "
                        "shrink batch, sequence or model"
                    )
                train = asdict(TrainConfig(**{**suite.train, **scheme.train, "budget": budget}))
                parts = {"router": router, "model": shape, "train": train, **same}
                cells += ({**parts, "seed": seed} for seed in suite.axes.seeds)
    return cells


def _router(row: Resolved, label: str) -> dict[str, Any]:
    return {
        "name": row.name,
        "options": _plain(row.options),
        "plugin_sha256": row.plugin_sha256,
        "label": label,
    }


def _same_for_all(suite: Suite) -> dict[str, Any]:
    """The parts that all cells of ``suite`` share."""
    return _plain({"data": asdict(suite.data), "measure": suite.measure.as_cell()})


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` with lists for tuples, as specifications and records have them."""
    return json.loads(json.dumps(value))  # type: ignore[no-any-return]


def _isoflop_cells(rows: Rows, scheme: Scheme, done: Mapping[str, float | None]) -> list[Cell]:
    """The cells of ``scheme`` that are known now that those of ``done`` are."""
    suite, row = rows.suite, rows.resolved[scheme.label]
    config, seeds, same = suite.family_of(scheme), suite.axes.seeds, _same_for_all(suite)
    grids = grids_of(rows, scheme)

    @cache
    def of_shape(shape: ModelConfig) -> dict[str, Any]:
        return {"router": _router(row, f"{scheme.label}/w{shape.width}"), "model": asdict(shape)}

    @cache
    def of_training(budget: int, rate: float) -> dict[str, Any]:
        own = {"budget": budget, "learning_rate": rate}
        return asdict(TrainConfig(**{**suite.train, **scheme.train, **own}))

    def cell(point: Point) -> Cell:
        train = of_training(point.budget, point.learning_rate)
        return {**of_shape(point.shape), "train": train, **same, "seed": point.seed}

    losses: dict[float, float | None] = {}
    while True:
        tried = trials(config, grids, seeds, losses)
        keys = {point.learning_rate: cell_key(cell(point)) for point in tried}
        fresh = {r: done[key] for r, key in keys.items() if r not in losses and key in done}
        if not fresh:
            return [cell(point) for point in points(config, grids, seeds, losses)]
        losses |= fresh


def grids_of(rows: Rows, scheme: Scheme) -> dict[int, list[ModelConfig]]:
    """The isoFLOP grid of ``scheme`` at each budget."""
    shapes = rows.resolved[scheme.label].grids
    found = ([ModelConfig(**shape) for shape in grid] for grid in shapes)
    return dict(zip(rows.suite.axes.budgets, found, strict=True))


def losses_of(records: Iterable[Finished]) -> dict[str, float | None]:
    """The held-out loss by key of the cells that are done; None unless the run was finished. Of several
    records of one key that counts which a report would show (`modbench.records.store.latest`)."""
    return {
        record.key: record.loss if record.status == "ok" else None
        for record in sorted(records, key=lambda one: (one.status == "ok", one.finished))
        if record.kind == "cell" and record.status in DONE
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


def titles(cells: Mapping[str, Cell]) -> dict[str, str]:
    """The displayed names of ``cells``, by key: a label; with budget and seed if those differ among
    them, and with the learning rate if cells of one label differ in it."""
    several_budgets = len({cell["train"]["budget"] for cell in cells.values()}) > 1
    several_seeds = len({cell["seed"] for cell in cells.values()}) > 1
    rates: dict[str, set[float]] = defaultdict(set)
    for cell in cells.values():
        rates[cell["router"]["label"]].add(cell["train"]["learning_rate"])
    found = {}
    for key, cell in cells.items():
        label, train = cell["router"]["label"], cell["train"]
        words = [label]
        if several_budgets:
            words.append(f"{train['budget']:.3g} FLOPs")
        if len(rates[label]) > 1:
            words.append(f"learning rate {train['learning_rate']:g}")
        if several_seeds:
            words.append(f"seed {cell['seed']}")
        found[key] = ", ".join(words)
    return found


def by_key(cells: Iterable[Cell]) -> dict[str, Cell]:
    """``cells`` by the keys of their records."""
    return {cell_key(cell): cell for cell in cells}


def cells_left(cells: Mapping[str, Cell], records: Iterable[Finished]) -> dict[str, Cell]:
    """The cells without one of ``records`` whose status is done and whose audit is stored."""
    records = list(records)
    audits = {line.key for line in records if line.kind == "audit"}
    done = {
        line.key
        for line in records
        if line.kind == "cell" and line.status in DONE and line.audit_key in (None, *audits)
    }
    return {key: cell for key, cell in cells.items() if key not in done}


def cell_jobs(
    left: Mapping[str, Cell],
    cells: Mapping[str, Cell],
    rows: Rows,
    folder: Path,
    data: dict[str, Any],
    threads: int,
) -> list[Job]:
    """The jobs of the cells ``left`` of ``cells``. ``data``: for records of crashed cells."""
    import torch

    from modbench.measure.environment import environment
    from modbench.sweep.cell import cell_record

    suite, shown = rows.suite, titles(cells)
    header, track = suite.header, asdict(suite.track)
    named = {"name": header.name, "version": header.version, "rank_by": header.rank_by}
    of_scheme = {label: named | _stated(rows, label) for label in rows.resolved}

    def crash_record(cell: Cell, *how: Any) -> CellRecord:
        machine = environment(torch.float32)
        # The other entries describe this process, not the one that crashed.
        known = {name: machine[name] for name in ("cpu", "gpu", "torch")} | {"threads": threads}
        return cell_record(cell, of_scheme[scheme_of(cell)], data, known, *how)

    jobs = []
    for key, cell in left.items():
        cell_folder = folder.resolve() / "cells" / key
        spec = {
            "job": "cell",
            "suite": of_scheme[scheme_of(cell)],
            "cell": cell,
            "track": track,
            "plugins": rows.plugins_of(cell),
            "results": str(folder.resolve()),
            "folder": str(cell_folder),
            "threads": threads,
        }
        jobs.append(
            Job(
                identity=("cell", key, None, None, None),
                title=shown[key],
                spec=spec,
                log=cell_folder / "log.txt",
                crash_record=partial(crash_record, cell),
            )
        )
    return jobs


def scheme_of(cell: Cell) -> str:
    """The label of the scheme of ``cell``, without that of its shape."""
    return str(cell["router"]["label"]).partition("/")[0]


def _stated(rows: Rows, label: str) -> dict[str, Any]:
    """The learning rates of isoFLOP grids that records of the scheme ``label`` state, if any."""
    suite = rows.suite
    if suite.isoflop is None:
        return {}
    scheme = next(one for one in suite.schemes if one.label == label)
    middle = middle_of(grids_of(rows, scheme))
    return {"isoflop": stated(suite.family_of(scheme), middle, suite.axes.seeds)}
