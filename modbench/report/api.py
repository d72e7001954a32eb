"""Results as pandas frames, for a notebook or figures of one's own. Types are nullable, a missing value
is NA, and nothing is rounded."""

from pathlib import Path
from typing import TYPE_CHECKING

from modbench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from modbench.analysis.curves import Curves
    from modbench.records.submission import Submission
    from modbench.report.suite import Suite


def results(folder: str | Path) -> "pd.DataFrame":
    """The results of ``folder``, such as ``my-results/quick``: a row for each run at each budget.

    Columns are what names a run (scheme, label, router, options, width, layers, depth, budget in
    training FLOPs, point, seed, learning_rate, precision, processor, status, key), each metric of
    ``modbench list metrics`` in its unit, ``TASK:METRIC`` for downstream tasks (``modbench_cloze:acc``
    for the metric ``modbench_cloze``), and ``added_layer_N`` and ``gate_scale_layer_N`` for routed
    layers. Times are medians of the scheme in the newest session of ``modbench time``. Raises UserError:
    there are no records of runs."""
    from modbench.report.runs import INNER_OF_RUNS

    return _read(folder, curves=False).runs.drop(columns=[*INNER_OF_RUNS])


def pairs(folder: str | Path, submissions: "Sequence[Submission]" = ()) -> "pd.DataFrame":
    """The comparisons of ``folder``: a row for each pair of schemes at a budget, with the value of
    ``scheme`` minus that of ``other``, its 95 % interval, p-value, and, within its ``family``, adjusted
    p-value and verdict. `modbench docs columns` has all columns (differences.csv). The rows of
    ``submissions`` count as rows of the suite. Raises UserError: there are no records of runs."""
    suite = _read(folder, submissions=submissions)
    return suite.sweep.curves.pairs if suite.sweep else suite.pairs


def curves(folder: str | Path) -> "Curves":
    """The isoFLOP curves of ``folder`` as frames: ``points`` (means over seeds of each size), ``optima``
    (of each scheme, budget, depth and fit, with intervals; a parabola is ``loss + curvature *
    log(size / active_parameters) ** 2``), ``rates`` (learning rates tried), ``laws`` (checks of their
    law), ``scatter``, ``surfaces``, ``pairs`` (as `pairs`), ``runs`` (those of the curves), and
    ``noise``. `modbench.analysis.frames` has the columns. Raises UserError: there are no records of
    runs, or they are of no isoFLOP suite."""
    sweep = _read(folder).sweep
    if sweep is None:
        raise UserError(f"{folder} has no isoFLOP curves; see `modbench docs isoflop`")
    return sweep.curves


def _read(
    folder: str | Path, *, curves: bool = True, submissions: "Sequence[Submission]" = ()
) -> "Suite":
    from modbench.report.suite import read

    _, suite, _ = read(Path(folder), submissions, curves=curves)
    if suite is None:
        raise UserError(f"{folder}: no run has finished yet; there are no results")
    return suite
