"""Refuses isoFLOP suites that were changed since some of their runs were trained. Imports no torch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from modbench.errors import UserError, several
from modbench.records.finished import Finished
from modbench.records.result import results_of
from modbench.records.run import Run
from modbench.records.store import read_suite
from modbench.sweep.rows import Rows
from modbench.sweep.wanted import Wanted, expand_planned


def check_unchanged(
    rows: Rows, wanted: Sequence[Wanted], records: Sequence[Finished], folder: Path
) -> None:
    """Raises UserError: a suite with isoFLOP grids has another exponent, margin or other settings than
    finished runs of its schemes in ``folder`` (results/<suite>), since a curve must not hold both."""
    recorded = {record.key for record in records if record.kind == "run" and record.status == "ok"}
    if rows.suite.isoflop is None or not recorded:
        return
    _check_plan(rows, records, folder)
    if recorded <= {item.run.key for item in wanted}:
        return
    now = {(item.scheme, _settings(item.run)) for item in (*wanted, *expand_planned(rows))}
    schemes = {scheme.label for scheme in rows.suite.schemes}
    for result in results_of(read_suite(folder)):
        changed = (result.scheme, _settings(result.run)) not in now
        if result.status == "ok" and result.scheme in schemes and changed:
            raise UserError(
                f"{folder} holds runs of '{result.label}' with other settings than the suite has now; a "
                "curve must not hold both: give that scheme another label, give --results another "
                "folder, or restore the suite"
            )


def _settings(run: Run) -> str:
    """Return the key of ``run`` whatever its seed and learning rate, which may differ."""
    return replace(run, seed=0, train=replace(run.train, learning_rate=1.0)).key


def _check_plan(rows: Rows, records: Sequence[Finished], folder: Path) -> None:
    """Raises UserError: finished runs state another exponent or margin than ``rows`` has."""
    isoflop = rows.suite.isoflop
    assert isoflop is not None
    margins = {record.margin for record in records if record.margin is not None}
    settings = [("margin", margins, isoflop.margin, "a margin chosen after the results proves nothing")]
    for depth in isoflop.layers or (None,):
        laws = {law for record in records for of, law in record.exponents if of == depth}
        name = "exponent" if depth is None else f"exponent at {several(depth, 'layer')}"
        settings.append((name, laws, isoflop.of_depth(depth).exponent, "a curve must not hold both"))
    for name, stated, now, why in settings:
        if others := stated - {now}:
            raise UserError(
                f"{folder} holds runs with [isoflop] {name} {min(others):g} (now {now:g}); {why}: give "
                "--results another folder, or restore the suite"
            )
