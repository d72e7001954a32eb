"""The command `modbench flops`."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from modbench.cli.messages import tell
from modbench.cli.options import Plugins, RouterOptions, Routers, Several, flat, parsed_options
from modbench.errors import UserError
from modbench.ledger import Ledger, Phase
from modbench.model.sizes import ShapeOptions
from modbench.routing.registry import load_plugin

if TYPE_CHECKING:
    from modbench.accounting.statement import Asked, Statement
    from modbench.model.language_model import LanguageModel

#: Tokens with --hf where the config states no length; also the most with --profile, for which a model
#: runs, with masks of length squared.
UNSTATED_LENGTH = 2048


def flops(
    *,
    router: Routers = (),
    hf: Annotated[Several[Path], arg(metavar="FOLDER|CONFIG.json ...", help_behavior_hint="")] = (),
    shape: OmitArgPrefixes[ShapeOptions],
    option: RouterOptions = (),
    batch: int = 1,
    past: int = 0,
    phase: Phase = "forward",
    optimizer: Literal["adamw", "muon"] = "adamw",
    convention: str = "model",
    compare_conventions: bool = False,
    profile: bool = False,
    format: Literal["table", "json"] = "table",
    plugin: Plugins = (),
) -> int:
    """Print the FLOPs of a model: total, per token, by component, and relative to the dense model.

    `modbench flops gate` compares all routers with a committed table instead.

    Example: modbench flops --router mod --size 124M --option capacity=0.25 --phase train

    Args:
        router: routers (`modbench list routers`), a row for each
        hf: model folders or config.json files of Hugging Face causal language models, a row for each, by
            default at the config's own length (2048 if it states none, at most 2048 with --profile)
        shape: shape of the decoder, with --router; --sequence also with --hf
        option: options of the routers; by default their defaults
        batch: number of sequences
        past: cached tokens of each sequence
        phase: forward: score all tokens; train: a training step; prefill: read a prompt into the cache;
            decode: one token at a time
        optimizer: of --phase train: muon adds its matmuls, whose share per token depends on --batch, to
            convention executed; adamw has none
        convention: how FLOPs are counted: model, full, executed, or a paper's convention: kaplan, six_n,
            chinchilla_text, chinchilla_a4, palm, megatron, torchtitan (modbench docs conventions)
        compare_conventions: print the total under every convention
        profile: also count a run on the meta device, next to fvcore and PyTorch's FlopCounterMode; the
            exit code is 1 if our counter differs
        format: table: for reading; json: one JSON document on the last line
        plugin: Python files that register routers
    """
    from modbench.accounting.literature import uniform_workload
    from modbench.accounting.statement import Asked, as_json, as_table, router_statement

    files = flat(hf)
    if bool(router) == bool(files):
        given = "both" if router else "none"
        raise UserError(
            f"flops takes either --router or --hf and was given {given}; for example: modbench flops "
            "--router mod"
        )
    asked = Asked(
        convention=convention,
        compare=compare_conventions,
        profile=profile,
        update=_update(optimizer, phase, of_router=bool(router), profile=profile),
    )
    for file in flat(plugin):
        load_plugin(file)
    if files:
        _refuse_unused(shape, option)
        statements = [_family(file, shape.sequence, batch, phase, past, asked) for file in files]
    else:
        size, options = shape.resolved(), parsed_options(option)
        load = uniform_workload(batch, size.sequence, phase, past)
        statements = [router_statement(name, options, size.model, load, asked) for name in flat(router)]
    print(as_json(statements) if format == "json" else as_table(statements))
    wrong = [made for made in statements if made.counters.get("modbench", made.flops) != made.flops]
    for made in wrong:
        counted = made.counters["modbench"]
        tell(f"{made.name}: the closed form says {made.flops:,}, the counter {counted:,}")
    return 1 if wrong else 0


def _update(
    optimizer: Literal["adamw", "muon"], phase: Phase, *, of_router: bool, profile: bool
) -> "Callable[[LanguageModel], Ledger] | None":
    """Return what gives the FLOPs of a step of ``optimizer``; None: it has none. Raise a `UserError` if
    there is no such step."""
    if optimizer == "adamw":
        return None
    for given, needs in ((phase == "train", "--phase train"), (of_router, "--router")):
        if not given:
            raise UserError(f"--optimizer has no effect without {needs}; add that, or leave it out")
    if profile:
        raise UserError("--profile counts passes alone; leave out --optimizer, or --profile")
    from modbench.train.config import TrainConfig
    from modbench.train.optimizer import optimizer_ledger

    return partial(optimizer_ledger, train=TrainConfig(optimizer=optimizer))


def _refuse_unused(shape: ShapeOptions, option: Sequence[object]) -> None:
    """Raise a `UserError` for an option that has no effect with --hf."""
    unused = ["option"] if option else []
    for field in fields(shape):
        if field.name != "sequence" and getattr(shape, field.name) != field.default:
            unused.append(field.name.replace("_", "-"))
    if unused:
        raise UserError(f"--{unused[0]} has no effect with --hf; leave it out")


def _family(
    file: Path, sequence: int | None, batch: int, phase: Phase, past: int, asked: "Asked"
) -> "Statement":
    """State the model of a config.json at ``sequence`` tokens; None: its own length, less ``past``."""
    from modbench.accounting.literature import uniform_workload
    from modbench.accounting.statement import family_statement
    from modbench.hf.families import load_config, stated_length

    config = load_config(file)
    if sequence is None:
        longest = stated_length(config) or UNSTATED_LENGTH
        sequence = max(1, (min(longest, UNSTATED_LENGTH) if asked.profile else longest) - past)
    load = uniform_workload(batch, sequence, phase, past)
    try:
        return family_statement(config, load, asked, name=str(file))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def gate(
    *,
    accept: bool = False,
    golden: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    plugin: Plugins = (),
    router: Annotated[Several[str], arg(metavar="NAME ...", help_behavior_hint="")] = (),
) -> int:
    """Compare the FLOPs of routers on reference shapes with a committed table, exactly. The exit code
    is 1 if a count changed, is missing or is new, or a router can't be built.

    Example: modbench flops gate --plugin my_router.py --golden my_router.flops.json

    Args:
        accept: write the table instead of comparing
        golden: the table, a JSON file; by default the table of the built-in routers
        plugin: Python files whose routers are compared; by default the built-in routers are
        router: names of routers, such as those of an installed package, that are compared
    """
    from modbench.accounting.gate import GOLDEN, run_gate

    return run_gate(golden or GOLDEN, plugins=flat(plugin), routers=flat(router), accept=accept)
