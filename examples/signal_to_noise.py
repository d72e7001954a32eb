"""Prints the signal-to-noise ratio of each downstream task of a suite (Heineman et al. 2025).

    python examples/signal_to_noise.py results/quick-scores

Signal: the largest difference between schemes over their mean. Noise: the standard deviation of a run's
last checkpoints ([measure] downstream_checkpoints) or, without any, of the seeds of a scheme, over the
mean; of several runs or schemes, the root of the mean variance. Below 1, the task does not separate the
schemes. Each scheme has one size and one budget; the noise between items is not included.
"""

import sys
from pathlib import Path

import pandas as pd

from modbench.records.result import results_of
from modbench.records.store import read_suite


def scores(folder: Path) -> pd.DataFrame:
    """A row per task, metric, scheme, seed and checkpoint; the trained model is the last checkpoint."""
    rows = []
    for result in results_of(read_suite(folder)):
        for task, entry in result.downstream.items():
            for metric, score in entry.metrics.items():
                values = [*(score.checkpoints or ()), score.value]
                of = {"task": task, "metric": metric, "scheme": result.label, "seed": result.seed}
                rows += [of | {"point": point, "value": value} for point, value in enumerate(values)]
    return pd.DataFrame(rows)


def signal_to_noise(values: pd.DataFrame) -> pd.Series:
    """Signal, noise and their ratio of the ``values`` of one task and metric."""
    trained = values[values.point == values.point.max()]
    schemes = trained.groupby("scheme").value.mean()
    if values.point.max() > 0:
        noisy, runs = values, ["scheme", "seed"]
    else:
        noisy, runs = trained, ["scheme"]
    noise = noisy.groupby(runs).value.var().mean() ** 0.5 / noisy.value.mean()
    signal = (schemes.max() - schemes.min()) / schemes.mean()
    return pd.Series({"signal": signal, "noise": noise, "ratio": signal / noise})


if __name__ == "__main__":
    found = scores(Path(sys.argv[1]))
    if found.empty:
        sys.exit("no downstream scores there; give the folder of a suite with [measure] downstream")
    groups = found[found.value > 0].groupby(["task", "metric"])  # shares of a mean around 0 mean nothing
    print(pd.DataFrame({name: signal_to_noise(values) for name, values in groups}).T.round(3))
