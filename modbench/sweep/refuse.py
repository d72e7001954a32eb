"""Checks before a suite is trained: its tasks, passes over its text, and isoFLOP settings
that changed since some of its runs were trained. Imports no torch."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from modbench.data.corpus import most_tokens
from modbench.data.token_data import is_prepared
from modbench.errors import UserError, several
from modbench.records.finished import Finished
from modbench.records.result import results_of
from modbench.records.run import Run
from modbench.records.store import read_suite
from modbench.sweep.rows import Rows
from modbench.sweep.suite import Suite
from modbench.sweep.wanted import Wanted, expand_planned
from modbench.train.config import TrainConfig


def tokens_of(budget: int, step_flops: int, train: TrainConfig) -> int:
    """Training tokens that ``budget`` buys, with nominal routing."""
    return budget // step_flops * train.batch * train.sequence


def refuse_before_preparing(rows: Rows, schemes: Collection[str]) -> None:
    """Raise a `UserError` if a run of ``schemes`` would read the training text more often than [isoflop]
    allows even if each byte were a token: known before it is prepared, unless its size is not."""
    data = rows.suite.data
    if rows.suite.isoflop and not is_prepared(data) and (tokens := most_tokens(data)):
        refuse_more_passes(rows, schemes, tokens, at_most=True)


def refuse_more_passes(
    rows: Rows, schemes: Collection[str], train_tokens: int, *, at_most: bool = False
) -> None:
    """Raise a `UserError` if a run of ``schemes`` would read the training text of ``train_tokens``
    tokens more often than [isoflop] allows; the sentence names the one with the most passes.
    ``at_most``: the text has as many tokens or fewer."""
    suite = rows.suite
    if suite.isoflop is None:
        return
    passes = 0.0
    where = ""
    for scheme in suite.schemes:
        row = rows.resolved.get(scheme.name)
        if row is None or scheme.name not in schemes:
            continue
        train = suite.training_of(scheme)
        for budget, shapes, flops in zip(suite.axes.budgets, row.grids, row.grid_flops, strict=True):
            for shape, of_step in zip(shapes, flops, strict=True):
                read = tokens_of(budget, of_step, train) / train_tokens
                if read > passes:
                    passes = read
                    where = f"'{scheme.name}', width {shape.width} at {budget:g} FLOPs"
    if passes > suite.isoflop.passes:
        enough = ceil(10 * passes) / 10
        of, more = (" at most", " or more") if at_most else ("", "")
        raise UserError(
            f"suite {suite.source}: {where}, would read the training text of{of} {train_tokens:,} "
            f"tokens {enough:g} times{more}, and [isoflop] passes allows {suite.isoflop.passes:g}; set "
            f"passes = {enough:g}{more}, lower the budget or tokens_per_parameter, or give more text"
        )


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
                f"{folder} holds runs of '{result.label}' with other settings than the suite has now; "
                "give that scheme another label, give --results another folder, or restore the suite"
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
    for depth, config in rows.suite.depths.items():
        laws = {law for record in records for of, law in record.exponents if of == depth}
        name = "exponent" if depth is None else f"exponent at {several(depth, 'layer')}"
        settings.append((name, laws, config.exponent, "a curve must not hold both"))
    for name, stated, now, why in settings:
        if others := stated - {now}:
            raise UserError(
                f"{folder} holds runs with [isoflop] {name} {min(others):g} (now {now:g}); {why}: give "
                "--results another folder, or restore the suite"
            )


def check_tasks(suite: Suite, embedded: bool) -> None:
    """Check the downstream tasks before anything is trained. Raises UserError: a group and its member
    are named, or the held-out text is too short for a task of ours."""
    measure = suite.measure
    if len(measure.downstream) > 1:  # lm-eval takes seconds to import
        from modbench.evaluate.downstream.task_files import files_by_name

        try:
            files_by_name(measure.downstream, measure.include)
        except UserError as error:
            raise UserError(f"suite {suite.source}: [measure] downstream: {error}") from error
    if not embedded:
        from modbench.evaluate.tasks.build import check_text

        check_text(measure.downstream, suite.data)
