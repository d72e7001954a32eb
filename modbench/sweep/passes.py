"""Passes of a suite's runs over its training text. Imports no torch."""

from collections.abc import Collection
from math import ceil

from modbench.data.corpus import most_tokens
from modbench.data.token_data import is_prepared
from modbench.errors import UserError
from modbench.sweep.rows import Rows
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
                    where = f"'{scheme.name}', width {shape['width']} at {budget:g} FLOPs"
    if passes > suite.isoflop.passes:
        enough = ceil(10 * passes) / 10
        of, more = (" at most", " or more") if at_most else ("", "")
        raise UserError(
            f"suite {suite.source}: {where}, would read the training text of{of} {train_tokens:,} "
            f"tokens {enough:g} times{more}, and [isoflop] passes allows {suite.isoflop.passes:g}; set "
            f"passes = {enough:g}{more}, lower the budget or tokens_per_parameter, or give more text"
        )
