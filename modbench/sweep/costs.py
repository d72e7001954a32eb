"""`modbench plan SUITE --price`: hours and costs of a suite on GPUs, and the memory of its largest runs,
from shapes and a data sheet alone."""

from collections.abc import Sequence

from modbench.hf.config import is_predicted
from modbench.hf.models import outline_of
from modbench.model.language_model import LanguageModel
from modbench.plan.activations import Compute
from modbench.plan.gpus import Cluster, Gpu
from modbench.plan.memory import Measured, Recipe
from modbench.plan.plan import memory_cells
from modbench.records.run import Run
from modbench.report.table import Table
from modbench.sweep.wanted import Wanted
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
    parallel = train.parallel or {}
    recipe = Recipe(
        micro_batch=train.rows,
        checkpoint=train.recompute,
        shard=parallel.get("shard", 1),
        expert=parallel.get("expert", 1),
    )
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
    return "set [train] recompute = true or parallel, or take a smaller model"


def costs(runs: Sequence[Wanted], flops: int, cluster: Cluster) -> str:
    """Hours and costs of ``runs``, which take ``flops`` in all, and memory, as text."""
    gpu, price = cluster.gpu, cluster.price or 0.0
    parts = [(item.run.schedule.budgets[-1], item.run.model.width) for item in runs]
    # The runs' shares of all FLOPs, each at the speed of its width.
    each = flops / sum(budget for budget, _ in parts)
    of_one = sum(cluster.hours(each * budget, width) for budget, width in parts)
    most = sum(item.run.train.ranks for item in runs)
    needed = max(item.run.train.ranks for item in runs)
    hours = {count: of_one / min(count, most) for count in _GPUS if count >= needed}
    ats = sorted({cluster.at(width) for _, width in parts})
    between = " to ".join(dict.fromkeys(f"{at:.0%}" for at in (ats[0], ats[-1])))
    how = ", assumed by the width of a model" if cluster.utilisation is None else ""
    rows = [(f"{count:,}", f"{of:,.1f}") for count, of in hours.items()]
    table = Table(("GPUs", "hours"), rows).to_text()
    return "\n".join(
        [
            f"{gpu.name} at {between} of {gpu.flops / 1e12:,.0f} TFLOP/s{how}; {price:g} per hour: "
            f"{of_one * price:,.0f} in all",
            table,
            "",
            f"memory of a pass ([train] micro_batch) of each scheme's largest model, of "
            f"{gpu.memory / 1e9:.0f} GB, nominal routing (a router with data-dependent shapes may take "
            "more at its first steps):",
            _memories(runs, gpu),
        ]
    )


def _memories(runs: Sequence[Wanted], gpu: Gpu) -> str:
    largest: dict[str, Run] = {}
    for item in runs:
        here = largest.get(item.scheme)
        if here is None or _size(item.run) > _size(here):
            largest[item.scheme] = item.run
    labels = ("scheme", "size", "sequences")
    rows = []
    for scheme, run in largest.items():
        row = (scheme, f"{run.model.width}x{run.model.layers}", str(run.train.rows))
        if is_predicted(run.model):
            measured = measured_pass(run, outlined(run))
            memory = measured.memory(run.train.rows)
            # Where the pass fits, how many more sequences would is not worth the seconds.
            fits = memory.total <= gpu.memory
            most = "fits" if fits else measured.largest_micro_batch(gpu.memory)
            more, cells = zip(*memory_cells(memory, most, gpu), strict=True)
            labels, row = (*labels[:3], *more), (*row, *cells)
        rows.append(row)
    return Table(labels, [(*row, *("-",) * (len(labels) - len(row))) for row in rows]).to_text()


def _size(run: Run) -> int:
    model = run.model
    mlp = getattr(model, "mlp_width", 0) or 4 * model.width
    return model.layers * model.width * (4 * model.width + 3 * mlp)
