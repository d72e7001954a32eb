"""The command `modbench plan`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.messages import tell
from modbench.cli.options import (
    Amount,
    RouterOptions,
    Routers,
    SuiteOptions,
    flat,
    parsed_options,
)
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.sizes import SIZES, Size
from modbench.plan.gpus import Cluster, described_gpu
from modbench.plan.units import amount, shown
from modbench.report.table import Table
from modbench.routing.registry import load_plugin
from modbench.sweep.request import SuiteRequest
from modbench.typed import built

if TYPE_CHECKING:
    from modbench.plan.solver import Solution


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """GPUs of --price."""

    #: a100, h100, h100-pcie, h100-nvl, h200, b200 or mi300x; another name with --peak-tflops
    gpu: str = "h100"
    peak_tflops: Amount = None  #: dense bfloat16 TFLOP/s of one GPU; by default its data sheet's
    #: assumed model FLOPs utilisation, in (0, 1]; by default by the width of the model, .1 to .4
    utilisation: Amount = None


@dataclass(frozen=True, kw_only=True)
class SolvedOptions:
    """Shapes of --router."""

    option: RouterOptions = ()  #: options of the routers; by default their defaults
    tokens_per_parameter: Amount = None  #: training tokens per active parameter, by default 20


def plan(
    suite: Annotated[Positional[str | None], arg(metavar="[SUITE]", help_behavior_hint="")] = None,
    /,
    *,
    router: Routers = (),
    common: OmitArgPrefixes[SuiteOptions],
    solved: OmitArgPrefixes[SolvedOptions],
    gpus: OmitArgPrefixes[GpuOptions],
    format: Literal["table", "json"] = "table",
    price: Annotated[float | None, arg(metavar="AMOUNT", help_behavior_hint="")] = None,
    detect: Annotated[float | None, arg(metavar="NATS", help_behavior_hint="")] = None,
    noise: Annotated[float | None, arg(metavar="NATS", help_behavior_hint="")] = None,
) -> int:
    """Print what a suite will take: its runs, their FLOPs, tokens and epochs; with --price, GPU-hours
    and costs; with --detect, the seeds that a difference of losses needs. Nothing is run.

    With --router instead: print the shape of each scheme that spends --budget, which compares schemes at
    equal compute. (modbench plan --router vanilla mod --budget 1e18 --set model.layers=12)

    Example: modbench plan quick

    Args:
        suite: name of a shipped suite (`modbench list suites`) or path of a TOML file
        router: routers (`modbench list routers`), a row for each
        common: results, routers, and values in place of those of the suite file; with --router, the
            base of its shapes as model.KEY=VALUE and train.sequence=TOKENS
        solved: shapes of --router
        gpus: GPUs of --price
        format: table: for reading; json: one JSON document on the last line
        price: of one GPU per hour: print a suite's hours on --gpu and costs
        detect: a difference between two rows in nats per token: print the seeds for a power of 80 %
        noise: of --detect: standard deviation of one run between seeds; by default that of the
            suite's records in --results
    """
    if (suite is None) == (not router):
        given = "both" if router else "none"
        raise UserError(
            f"plan takes either a suite or --router and was given {given}; for example: modbench plan "
            "quick, or modbench plan --router vanilla mod --budget 1e18"
        )
    unused = [] if suite is None else _changed(solved)
    unused += _changed(gpus) if price is None else []
    if unused:
        needs = "--price" if unused[0] in asdict(gpus) else "--router"
        raise UserError(f"--{unused[0].replace('_', '-')} has no effect without {needs}; leave it out")
    if suite is not None:
        priced = None
        if price is not None:
            priced = Cluster(described_gpu(gpus.gpu, gpus.peak_tflops), price, gpus.utilisation)
        if noise is not None and detect is None:
            raise UserError("--noise has no effect without --detect; leave it out")
        return _plan_suite(SuiteRequest(**common.asked(suite)), format, priced, detect, noise)
    if any(of is not None for of in (price, detect, noise, common.seeds)) or common.only:
        raise UserError(
            "--price, --detect, --noise, --seeds and --only need a suite; leave them out with --router"
        )
    return _solve(flat(router), common, solved, format)


def _changed(options: GpuOptions | SolvedOptions) -> list[str]:
    """The names of the options that are given."""
    return [of.name for of in fields(options) if getattr(options, of.name) != of.default]


def _solve(routers: Sequence[str], common: SuiteOptions, solved: SolvedOptions, format: str) -> int:
    from modbench.plan.solver import solve

    if common.budget is None:
        raise UserError("plan --router needs --budget, the training FLOPs to spend, such as 1e18")
    budget, base = amount(common.budget, "--budget"), _base(common)
    for file in flat(common.plugin):
        load_plugin(file)
    options = parsed_options(solved.option)
    each = 20.0 if solved.tokens_per_parameter is None else solved.tokens_per_parameter
    found = [solve(name, options, base, budget=budget, tokens_per_parameter=each) for name in routers]
    if format == "json":
        print(json.dumps({"budget": budget, "schemes": [asdict(solution) for solution in found]}))
    else:
        print(
            f"{base.sequence} tokens a sequence; FLOPs: convention model, nominal routing\n\n"
            + Table.of([_row(solution, budget) for solution in found]).to_text()
        )
    return 0


def _base(common: SuiteOptions) -> Size:
    """The smallest named size with the values of --set. Raises UserError: one is neither of the model
    nor the sequence, or has a wrong type or value."""
    base, keys = SIZES["1M"], {}
    for name, value in parsed_options(common.set, "--set", "model.layers=12").items():
        table, _, key = name.partition(".")
        if name == "train.sequence" and isinstance(value, int) and value > 0:
            base = replace(base, sequence=value)
        elif table == "model" and key:
            keys[key] = value
        else:
            raise UserError(
                f"--set {name}={value}: with --router it must be model.KEY=VALUE, such as "
                "model.layers=12, or train.sequence=TOKENS"
            )
    return replace(base, model=built("--set model", keys, ModelConfig))


def _row(solution: "Solution", budget: int) -> dict[str, object]:
    model = solution.model
    return {
        "scheme": solution.scheme,
        "layers": model.layers,
        "width": model.width,
        "heads": model.heads,
        "kv heads": model.key_heads,
        "MLP width": model.hidden,
        "parameters": shown(solution.parameters),
        "active": shown(solution.active_parameters),
        "tokens": shown(solution.tokens),
        "FLOPs": f"{solution.flops:.4g}",
        "of the budget": f"{solution.flops / budget:.2%}",
    }


def _plan_suite(
    request: SuiteRequest,
    format: str,
    cluster: Cluster | None,
    detect: float | None,
    noise: float | None,
) -> int:
    from modbench.sweep.plan import as_json, as_table, plan_suite

    made = plan_suite(request, tell)
    document, text = as_json(made), as_table(made)
    if cluster:
        from modbench.sweep.costs import costs_as_json, costs_as_table, priced

        costs = priced(made.flops_of, cluster)
        document |= costs_as_json(costs)
        text += f"\n\n{costs_as_table(costs)}"
    if detect is not None:
        from modbench.sweep.detect import detection

        if made.suite.isoflop:
            raise UserError(
                "--detect is of rows, and this suite compares optima of curves; leave it out"
            )
        found = detection(detect, noise, request.results / made.suite.header.name, made.flops_of)
        document |= {"detect": asdict(found)}
        text += f"\n\n{found.in_words()}"
    print(json.dumps(document) if format == "json" else text)
    return 2 if made.left_out else 0
