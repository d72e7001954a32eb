"""The command `modbench plan`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import (
    Amount,
    Count,
    RouterOptions,
    Routers,
    SuiteOptions,
    flat,
    parsed_options,
)
from modbench.errors import UserError
from modbench.model.sizes import ShapeOptions
from modbench.plan.gpus import Cluster, described_gpu
from modbench.plan.units import amount
from modbench.routing.registry import load_plugin
from modbench.sweep.request import SuiteRequest


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The GPUs and how training uses them."""

    #: a100-40gb, a100-80gb, h100, h100-pcie, h100-nvl, h200, b200 or mi300x; another name with both
    #: --peak-tflops and --memory-gb
    gpu: str = "h100"
    peak_tflops: Amount = None  #: dense bfloat16 TFLOP/s of one GPU; by default its data sheet's
    memory_gb: Amount = None  #: memory of one GPU in GB; by default its data sheet's
    gpus: int = 8  #: number of GPUs
    #: assumed model FLOPs utilisation, in (0, 1]; by default by the width of the model, .1 to .4
    utilisation: float | None = None
    #: bytes per parameter for weights, gradients and optimizer: fp32 (4+4+8) or bf16 (2+2+12)
    state: Literal["fp32", "bf16"] = "fp32"
    shard: Count = None  #: GPUs that share weights, gradients and optimizer (FSDP); by default all
    checkpoint: bool = False  #: activation checkpointing: keep only the input of each layer
    micro_batch: int = 1  #: sequences per GPU in one forward pass

    def described(self, price: float | None) -> Cluster:
        """The GPUs, an hour of one at ``price``."""
        gpu = described_gpu(self.gpu, self.peak_tflops, self.memory_gb)
        return Cluster(gpu=gpu, gpus=self.gpus, utilisation=self.utilisation, price=price)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Models of --router, without a suite."""

    option: RouterOptions = ()  #: options of the routers; by default their defaults
    #: training tokens, such as 300B
    tokens: Annotated[str | None, arg(metavar="AMOUNT", help_behavior_hint="")] = None
    #: with a budget and no tokens: training tokens per active parameter, by default 20
    tokens_per_parameter: Amount = None
    #: how FLOPs are counted: model, full, executed or a paper's convention (modbench docs conventions)
    convention: str = "model"


def plan(
    suite: Annotated[Positional[str | None], arg(metavar="[SUITE]", help_behavior_hint="")] = None,
    /,
    *,
    router: Routers = (),
    common: OmitArgPrefixes[SuiteOptions],
    model: OmitArgPrefixes[ModelOptions],
    shape: OmitArgPrefixes[ShapeOptions],
    cluster: OmitArgPrefixes[ClusterOptions],
    format: Literal["table", "json"] = "table",
    time: bool = True,
    price: Annotated[float | None, arg(metavar="AMOUNT", help_behavior_hint="")] = None,
) -> int:
    """Print what a suite will take on this machine: its runs, their FLOPs, tokens and epochs, and the
    time of their training steps. A few steps are measured.

    With --router instead: print training FLOPs, days and memory per GPU of a described cluster. With a
    budget, print the shape of each scheme that spends it, which compares schemes at equal compute.
    Nothing is allocated. (modbench plan --router vanilla mod --size 1.3B --budget 1e21 --gpus 64)

    Example: modbench plan quick

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        router: routers (`modbench list routers`), a column for each
        common: results, routers, and values in place of those of the suite file; step times of this
            machine that `modbench time` took in the results are used
        model: models of --router, without a suite
        shape: shape of the decoder; with a budget, the shape that solved shapes resemble
        cluster: the GPUs and how training uses them
        format: table: for reading; json: one JSON document on the last line
        time: measure training steps of the suite that have no step time
        price: of one GPU per hour: print costs; with a suite, also its hours on --gpu, and the memory of
            its largest models; nothing is measured
    """
    if (suite is None) == (not router):
        given = "both" if router else "none"
        raise UserError(
            f"plan takes either a suite or --router and was given {given}; for example: modbench plan "
            "quick, or modbench plan --router vanilla mod --tokens 1B"
        )
    if suite is None:
        return _plan_models(flat(router), common, model, shape, cluster, price, format)
    of_costs = () if price is None else ("gpu", "peak_tflops", "memory_gb", "utilisation")
    if changed := [name for name in _changed(model, shape, cluster) if name not in of_costs]:
        raise UserError(f"--{changed[0].replace('_', '-')} has no effect with a suite; leave it out")
    priced = None if price is None else cluster.described(price)
    return _plan_suite(SuiteRequest(**common.asked(suite)), time, format, priced)


def _changed(*groups: "ModelOptions | ShapeOptions | ClusterOptions | SuiteOptions") -> list[str]:
    """The names of the options that are given."""
    return [
        field.name
        for group in groups
        for field in fields(group)
        if getattr(group, field.name) != field.default
    ]


def _plan_models(
    routers: Sequence[str],
    common: SuiteOptions,
    model: ModelOptions,
    shape: ShapeOptions,
    cluster: ClusterOptions,
    price: float | None,
    format: str,
) -> int:
    from modbench.plan.memory import Recipe
    from modbench.plan.plan import as_json, as_table
    from modbench.plan.plan import plan as make_plan

    for name in _changed(common):
        if name in ("set", "seeds", "only"):
            raise UserError(f"--{name} needs a suite; leave it out")
    tokens, budget, each = model.tokens, common.budget, model.tokens_per_parameter
    if each is not None and (budget is None or tokens is not None):
        raise UserError("--tokens-per-parameter needs --budget without --tokens")
    for file in flat(common.plugin):
        load_plugin(file)
    made = make_plan(
        routers,
        parsed_options(model.option),
        shape.resolved(),
        tokens=None if tokens is None else amount(tokens, "tokens"),
        budget=None if budget is None else amount(budget, "budget"),
        tokens_per_parameter=20.0 if each is None else each,
        cluster=cluster.described(price),
        recipe=Recipe(
            state=cluster.state,
            shard=cluster.gpus if cluster.shard is None else cluster.shard,
            checkpoint=cluster.checkpoint,
            micro_batch=cluster.micro_batch,
        ),
        convention=model.convention,
    )
    print(as_json(made) if format == "json" else as_table(made))
    return 0


def _plan_suite(request: SuiteRequest, time: bool, format: str, cluster: Cluster | None) -> int:
    from modbench.sweep.plan import as_json, as_table, plan_suite

    made = plan_suite(request, time=time and not cluster, tell=tell)
    document, text = as_json(made), as_table(made)
    if cluster:
        from modbench.sweep.costs import costs_as_json, costs_as_table, priced

        costs = priced(made.flops_of, cluster)
        document |= costs_as_json(costs)
        text += f"\n\n{costs_as_table(costs)}"
    print(json.dumps(document) if format == "json" else text)
    return 2 if made.left_out else 0
