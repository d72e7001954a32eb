"""``modbench plan``: what a training run takes, before anything is bought."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.flops import Plugins, parsed_options
from modbench.errors import UserError
from modbench.model.sizes import ShapeOptions


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The machines and how they are used."""

    gpu: str = (
        "h100"  #: a100-40gb, a100-80gb, h100, h100-pcie, h100-nvl, h200, b200, mi300x, or any name
    )
    peak_tflops: float | None = None  #: its dense bfloat16 TFLOP/s, in place of the data sheet's
    memory_gb: float | None = None  #: its memory, in place of the data sheet's
    gpus: int = 8
    utilisation: float = 0.4  #: assumed share of the peak that goes into counted FLOPs
    state: Literal["fp32", "bf16"] = "fp32"  #: 4+4+8, or 2+2+12 bytes: weights, gradients, optimizer
    shard: int | None = None  #: GPUs that share weights, gradients, optimizer (FSDP); by default all
    expert_parallel: int = 1  #: GPUs that each layer's experts are divided over
    checkpoint: bool = False  #: keep each layer's input only, and run its forward pass again
    micro_batch: int = 1  #: sequences of a GPU at a time


#: What the sentences of `modbench.plan`, which Python code is told, too, call by the fields' names.
_FLAGS = (
    *(field.name for field in fields(ClusterOptions)),
    *("tokens", "tokens_per_parameter", "batch", "budget"),
)


@contextmanager
def _flags_for_fields() -> Iterator[None]:
    """
    Raises:
        UserError: what is raised inside, with flags in the place of fields: they are what was typed.
    """
    try:
        yield
    except UserError as error:
        sentence = str(error)
        for name in _FLAGS:
            where = rf"\b{name}\b" if "_" in name else rf"^{name}(?= is | ')"
            sentence = re.sub(where, f"--{name.replace('_', '-')}", sentence)
        raise UserError(sentence) from error


@_flags_for_fields()
def plan(
    *,
    router: Annotated[tuple[str, ...], arg(metavar="NAME[:PRESET] ...", help_behavior_hint="")],
    shape: OmitArgPrefixes[ShapeOptions],
    cluster: OmitArgPrefixes[ClusterOptions],
    option: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = (),
    tokens: Annotated[str | None, arg(metavar="AMOUNT", help_behavior_hint="")] = None,
    budget: Annotated[str | None, arg(metavar="FLOPS", help_behavior_hint="")] = None,
    tokens_per_parameter: float | None = None,
    batch: Annotated[str | None, arg(metavar="TOKENS", help_behavior_hint="")] = None,
    convention: str = "model",
    format: Literal["table", "json", "csv"] = "table",
    plugin: Plugins = (),
) -> int:
    """Print training FLOPs, days and memory per GPU; with a budget, the shape of each scheme that
    spends it: schemes at equal compute. Nothing is allocated.

    Example: modbench plan --router vanilla mod --size 1.3B --budget 1e21 --gpus 64

    Args:
        router: routers, each a column
        shape: the shape, or with a budget the one that solved shapes are like
        cluster: the machines and how they are used
        option: the routers' options; by default their defaults
        tokens: training tokens, such as 300B
        budget: training FLOPs, such as 1e21, to solve each scheme's shape for
        tokens_per_parameter: with a budget and no tokens: so many for each active parameter, 20 by
            default
        batch: tokens of one step; by default a micro-batch on each GPU
        convention: how FLOPs are counted (docs/conventions.md)
        format: a table to read, one JSON document on the last line, or CSV
        plugin: Python files that register routers
    """
    from modbench.plan.gpus import Cluster, described_gpu
    from modbench.plan.memory import Recipe
    from modbench.plan.plan import plan as planned
    from modbench.plan.plan import plan_budget
    from modbench.plan.table import FORMATS
    from modbench.plan.units import amount
    from modbench.routing.registry import load_plugin

    if tokens is None and budget is None:
        raise UserError("plan needs --tokens, such as 300B, or --budget, such as 1e21, or both")
    if budget is None and tokens_per_parameter is not None:
        raise UserError("--tokens-per-parameter needs --budget, the FLOPs to solve shapes for")
    if tokens is not None and tokens_per_parameter is not None:
        raise UserError("--tokens and --tokens-per-parameter both say how many tokens; leave one out")
    for file in plugin:
        load_plugin(file)
    size = shape.resolved()
    machines = Cluster(
        gpu=described_gpu(cluster.gpu, cluster.peak_tflops, cluster.memory_gb),
        gpus=cluster.gpus,
        utilisation=cluster.utilisation,
    )
    recipe = Recipe(
        state=cluster.state,
        shard=cluster.gpus if cluster.shard is None else cluster.shard,
        expert_parallel=cluster.expert_parallel,
        checkpoint=cluster.checkpoint,
        micro_batch=cluster.micro_batch,
    )
    many = None if tokens is None else amount(tokens, "tokens")
    step = None if batch is None else amount(batch, "batch")
    options = parsed_options(option)
    if budget is not None:
        made = plan_budget(
            router,
            options,
            size,
            budget=amount(budget, "budget"),
            tokens=many,
            tokens_per_parameter=20.0 if tokens_per_parameter is None else tokens_per_parameter,
            cluster=machines,
            recipe=recipe,
            batch=step,
            convention=convention,
        )
    else:
        assert many is not None
        made = planned(
            router,
            options,
            size,
            tokens=many,
            cluster=machines,
            recipe=recipe,
            batch=step,
            convention=convention,
        )
    print(FORMATS[format](made))
    return 0
