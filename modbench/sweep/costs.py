"""`modbench plan SUITE --price`: hours and costs of a suite on GPUs, and the memory of its largest runs,
from shapes and a data sheet alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modbench.hf.config import is_predicted
from modbench.hf.models import outline_of
from modbench.model.language_model import LanguageModel
from modbench.plan.activations import Compute
from modbench.plan.gpus import Cluster
from modbench.plan.memory import Measured, Recipe
from modbench.plan.plan import Scheme, table_of
from modbench.records.run import Run
from modbench.report.table import Table
from modbench.sweep.wanted import Wanted
from modbench.train.counted import flops_per_step
from modbench.train.numerics import device
from modbench.train.out_of_memory import free_bytes

#: Numbers of GPUs that hours are stated for.
_GPUS = (1, 8, 64, 256)


def outlined(run: Run) -> LanguageModel:
    """The model of ``run``, without values."""
    return outline_of(run.model, run.router.name, run.router.options)


def measured_pass(run: Run, model: LanguageModel) -> Measured:
    """The memory of a training pass of ``run``."""
    train = run.train
    recipe = Recipe(micro_batch=train.rows, checkpoint=train.recompute)
    compute: Compute | None = "float32" if train.precision == "float32" else None
    return Measured(model, train.sequence, recipe, compute=compute)


def room() -> int | None:
    """Bytes that are free on this machine's GPU; None without one."""
    on = device()
    return free_bytes(on) if on.type == "cuda" else None


def smaller_pass(run: Run, measured: Measured, there: int) -> str:
    """Advice for a ``run`` whose pass, ``measured``, needs more than ``there`` bytes."""
    train = run.train
    fits = min(measured.largest_micro_batch(there), train.rows - 1)
    divisors = [n for n in range(1, fits + 1) if train.batch // train.ranks % n == 0]
    if divisors:
        return f"set [train] micro_batch = {divisors[-1]}"
    return "set [train] recompute = true, or take a smaller model"


@dataclass(frozen=True)
class Costs:
    """GPU-hours and prices of a suite. ``hours``: of all its runs, by number of GPUs."""

    cluster: Cluster
    schemes: Sequence[Scheme]
    hours: Mapping[int, float]
    utilisation: tuple[float, float]  #: assumed of the narrowest and the widest model

    @property
    def gpu_hours(self) -> float:
        return sum(scheme.gpu_hours for scheme in self.schemes)


def priced(flops_of: Sequence[tuple[Wanted, int]], cluster: Cluster) -> Costs:
    """The costs of runs, each given with its FLOPs, on GPUs as those of ``cluster``."""
    by_scheme: dict[str, list[tuple[Run, int]]] = defaultdict(list)
    for wanted, flops in flops_of:
        by_scheme[wanted.scheme].append((wanted.run, flops))
    schemes = [_scheme(name, runs, cluster) for name, runs in by_scheme.items()]
    hours = sum(scheme.gpu_hours for scheme in schemes)
    ranks = [wanted.run.train.ranks for wanted, _ in flops_of]
    at = [cluster.at(wanted.run.model.width) for wanted, _ in flops_of]
    return Costs(
        cluster,
        schemes,
        {count: hours / min(count, sum(ranks)) for count in _GPUS if count >= max(ranks)},
        (min(at), max(at)),
    )


def _scheme(name: str, runs: Sequence[tuple[Run, int]], cluster: Cluster) -> Scheme:
    run = max((run for run, _ in runs), key=_size)
    train, model = run.train, outlined(run)
    memory = most = None
    if is_predicted(run.model):
        measured = measured_pass(run, model)
        memory = measured.memory(train.rows)
        # Where the pass fits, how many more sequences would is not worth the seconds.
        if memory.total > cluster.gpu.memory:
            most = measured.largest_micro_batch(cluster.gpu.memory)
    hours = sum(cluster.hours(flops, run.model.width) for run, flops in runs)
    return Scheme(
        scheme=name,
        model=run.model,
        parameters=model.parameter_count("total"),
        active_parameters=model.parameter_count("active"),
        runs=len(runs),
        training_flops_per_token=flops_per_step(model, train) / (train.batch * train.sequence),
        training_flops=sum(flops for _, flops in runs),
        gpu_hours=hours,
        price=None if cluster.price is None else hours * cluster.price,
        micro_batch=train.rows,
        memory=memory,
        largest_micro_batch=most,
    )


def _size(run: Run) -> int:
    model = run.model
    mlp = getattr(model, "mlp_width", 0) or 4 * model.width
    return model.layers * model.width * (4 * model.width + 3 * mlp)


def costs_as_table(costs: Costs) -> str:
    """The price in all, the hours by number of GPUs, and the schemes' table."""
    gpu, price = costs.cluster.gpu, costs.cluster.price or 0.0
    between = " to ".join(dict.fromkeys(f"{at:.0%}" for at in costs.utilisation))
    how = ", assumed by the width of a model" if costs.cluster.utilisation is None else ""
    hours = [(f"{count:,}", f"{of:,.1f}") for count, of in costs.hours.items()]
    return "\n".join(
        [
            f"{gpu.name} at {between} of {gpu.flops / 1e12:,.0f} TFLOP/s{how}; {price:g} per hour: "
            f"{costs.gpu_hours * price:,.0f} in all",
            Table(("GPUs", "hours"), hours).to_text(),
            "",
            f"each scheme's largest model, on GPUs of {gpu.memory / 1e9:.0f} GB; FLOPs and memory with "
            "nominal routing (data-dependent shapes may take more memory at the first steps):",
            table_of(costs.schemes, gpu),
        ]
    )


def costs_as_json(costs: Costs) -> dict[str, Any]:
    """Entries of a suite's JSON document."""
    return {
        "cluster": asdict(costs.cluster),
        "gpu_hours": costs.gpu_hours,
        "hours": {str(count): hours for count, hours in costs.hours.items()},
        "schemes": [scheme.as_json() for scheme in costs.schemes],
    }
