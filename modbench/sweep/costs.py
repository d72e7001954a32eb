"""`modbench plan SUITE --price`: GPU-hours and costs of a suite, from FLOPs and a data sheet."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modbench.plan.gpus import Cluster
from modbench.report.table import Table
from modbench.sweep.wanted import Wanted

#: Numbers of GPUs that hours are stated for.
_GPUS = (1, 8, 64, 256)


@dataclass(frozen=True)
class SchemeCosts:
    """All runs of one scheme; ``price`` of all its GPU-hours."""

    scheme: str
    runs: int
    training_flops: int
    gpu_hours: float
    price: float


@dataclass(frozen=True)
class Costs:
    """GPU-hours and prices of a suite. ``hours``: of all its runs, by number of GPUs."""

    cluster: Cluster
    schemes: Sequence[SchemeCosts]
    hours: Mapping[int, float]
    utilisation: tuple[float, float]  #: assumed of the narrowest and the widest model

    @property
    def gpu_hours(self) -> float:
        return sum(scheme.gpu_hours for scheme in self.schemes)


def priced(flops_of: Sequence[tuple[Wanted, int]], cluster: Cluster) -> Costs:
    """The costs of runs, each given with its FLOPs, on GPUs as those of ``cluster``."""
    by_scheme: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for wanted, flops in flops_of:
        by_scheme[wanted.scheme].append((flops, cluster.hours(flops, wanted.run.model.width)))
    schemes = []
    for name, runs in by_scheme.items():
        hours = sum(hours for _, hours in runs)
        flops = sum(flops for flops, _ in runs)
        schemes.append(SchemeCosts(name, len(runs), flops, hours, hours * cluster.price))
    hours = sum(scheme.gpu_hours for scheme in schemes)
    ranks = [wanted.run.train.ranks for wanted, _ in flops_of]
    at = [cluster.at(wanted.run.model.width) for wanted, _ in flops_of]
    return Costs(
        cluster,
        schemes,
        {count: hours / min(count, sum(ranks)) for count in _GPUS if count >= max(ranks)},
        (min(at), max(at)),
    )


def costs_as_table(costs: Costs) -> str:
    """The price in all, the hours by number of GPUs, and the schemes' table."""
    gpu, price = costs.cluster.gpu, costs.cluster.price
    between = " to ".join(dict.fromkeys(f"{at:.0%}" for at in costs.utilisation))
    how = ", assumed by the width of a model" if costs.cluster.utilisation is None else ""
    hours = [(f"{count:,}", f"{of:,.1f}") for count, of in costs.hours.items()]
    schemes = [
        (
            of.scheme,
            f"{of.runs:,}",
            f"{of.training_flops:.3g}",
            f"{of.gpu_hours:,.4g}",
            f"{of.price:,.2f}",
        )
        for of in costs.schemes
    ]
    return "\n".join(
        [
            f"{gpu.name} at {between} of {gpu.flops / 1e12:,.0f} TFLOP/s{how}; {price:g} per hour: "
            f"{costs.gpu_hours * price:,.0f} in all",
            Table(("GPUs", "hours"), hours).to_text(),
            "",
            Table(("scheme", "runs", "FLOPs", "GPU-hours", "price"), schemes).to_text(),
        ]
    )


def costs_as_json(costs: Costs) -> dict[str, Any]:
    """Entries of a suite's JSON document."""
    return {
        "cluster": asdict(costs.cluster),
        "gpu_hours": costs.gpu_hours,
        "hours": {str(count): hours for count, hours in costs.hours.items()},
        "schemes": [asdict(scheme) for scheme in costs.schemes],
    }
