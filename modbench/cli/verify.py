"""The command `modbench verify`."""

from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.options import Allow, Count, Trained, flat
from modbench.errors import UserError


def verify(
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]", help_behavior_hint="")] = (),
    /,
    *,
    all: bool = False,
    sample: Count = None,
    within: Annotated[float, arg(metavar="NATS")] = 0.05,
    common: OmitArgPrefixes[Trained],
    allow: Allow = (),
) -> int:
    """Train recorded runs again, and say which metrics come out equal. Nothing is stored.

    Example: modbench verify results/quick/mod#0

    Args:
        names: a folder of a suite's results, a row or a run of it such as quick/mod#0, or a file of
            records
        all: the runs of all suites in the results folder
        sample: number of runs to draw at random; by default all
        within: difference in validation loss that another machine may make, in nats per token
        common: folder of trained runs, and their plugins: routers as they were when recorded
        allow: texts, tokenizers, data sets, tasks and folders of tasks that records may name
    """
    if all == bool(names):
        raise UserError("verify needs names such as results/quick/mod#0, or --all")
    if sample is not None and sample < 1:
        raise UserError(f"--sample is {sample}; it must be 1 or more")
    from modbench.sweep.verify import verify as verify_runs

    return verify_runs(
        names,
        results=common.results,
        sample=sample,
        within=within,
        plugins=common.plugins,
        allow=flat(allow),
    )
