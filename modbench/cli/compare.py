"""The command `modbench compare`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from modbench.cli.options import Results


def compare(
    first: Annotated[Positional[str], arg(metavar="A", help_behavior_hint="")],
    second: Annotated[Positional[str], arg(metavar="B", help_behavior_hint="")],
    /,
    *,
    results: Results = Path("my-results"),
    fail_if_worse: Annotated[str | None, arg(metavar="METRIC", help_behavior_hint="")] = None,
) -> int:
    """Compare two suites' results, rows or runs: what differs, and each paired difference.

    Runs are paired by label, budget and seed; two rows of other labels by budget and seed.

    Example: modbench compare results/quick my-results/quick

    Args:
        first: folder of a suite's results, a row of it such as my-results/quick/mod, or a run such as
            quick/mod#0: what B is compared with
        second: the same
        results: folder that names such as quick/mod begin in
        fail_if_worse: exit with 1 if a row of B is worse in this metric
    """
    from modbench.records.named import named
    from modbench.report.compare import Comparison

    comparison = Comparison(named(first, results), named(second, results))
    worse = comparison.worse(fail_if_worse) if fail_if_worse else []
    print(f"first: {first}\nsecond: {second}\n")
    print(comparison.table().to_text(), end="\n\n")
    for sentence in comparison.sentences():
        print(sentence)
    if worse:
        print(f"\nworse in {fail_if_worse}: {', '.join(worse)}")
    return 1 if worse else 0
