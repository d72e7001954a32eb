"""The verbs that count without running a benchmark: ``modbench flops`` and its gate."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, arg

from modbench.accounting.statement import (
    Statement,
    check_convention,
    differing,
    family_statement,
    router_statement,
)
from modbench.accounting.table import FORMATS
from modbench.errors import UserError, known_names
from modbench.ledger import PHASES, Workload
from modbench.model.config import LARGEST_BATCH, LARGEST_SEQUENCE
from modbench.model.sizes import ShapeOptions

Plugins = Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")]


def flops(
    *,
    router: Annotated[tuple[str, ...], arg(metavar="NAME[:PRESET] ...", help_behavior_hint="")] = (),
    hf: Annotated[tuple[Path, ...], arg(metavar="CONFIG.json ...", help_behavior_hint="")] = (),
    suite: Annotated[str | None, arg(metavar="SUITE", help_behavior_hint="")] = None,
    shape: OmitArgPrefixes[ShapeOptions],
    option: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = (),
    batch: int = 1,
    past: int = 0,
    phase: Annotated[str, arg(metavar="forward|train|prefill|decode")] = "forward",
    convention: str = "model",
    compare_conventions: bool = False,
    profile: bool = False,
    format: Literal["table", "json", "csv"] = "table",
    plugin: Plugins = (),
) -> int:
    """Print what a model spends: in all, per token, by component, and beside the dense model.

    `modbench flops gate` compares all routers with a committed table instead.

    Example: modbench flops --router mod --size 124M --option capacity=0.25 --phase train

    Args:
        router: routers (`modbench list routers`), each a row
        hf: config.json files of Hugging Face causal LMs, each a row
        suite: a shipped suite's name or a TOML file: its schemes, shapes, batch and sequence
        shape: shape of the decoder that routers are put in
        option: the router's options; by default its defaults
        batch: sequences
        past: tokens of each sequence that are in the cache already
        phase: scoring, a training step, reading a prompt into a cache, or one token at a time
        convention: how FLOPs are counted: model, full, executed, or as a paper does (kaplan, six_n,
            chinchilla_text, chinchilla_a4, palm, megatron); see docs/conventions.md
        compare_conventions: print the total under every convention
        profile: count it as it runs, too, without allocating it; exit code 1 if that differs
        format: a table to read, one JSON document on the last line, or CSV
        plugin: Python files that register routers; with --suite, those that it doesn't name become rows
    """
    from modbench.routing.registry import load_plugin

    chosen = [name for name, given in (("--router", router), ("--hf", hf), ("--suite", suite)) if given]
    if len(chosen) != 1:
        raise UserError(
            f"flops takes one of --router, --hf and --suite, and was given "
            f"{' and '.join(chosen) or 'none'}; for example: modbench flops --router mod"
        )
    if phase not in PHASES:
        raise UserError(f"phase '{phase}' is not known; {known_names(phase, PHASES)}")
    check_convention(convention, profile=profile)
    for name, value, least, most in (
        ("batch", batch, 1, LARGEST_BATCH),
        ("past", past, 0, LARGEST_SEQUENCE),
        ("sequence", 1 if shape.sequence is None else shape.sequence, 1, LARGEST_SEQUENCE),
    ):
        if not least <= value <= most:
            raise UserError(f"{name} is {value}; it must lie between {least} and {most:,}")
    if option and not router:
        raise UserError(f"--option {option[0]} belongs to --router, not to {chosen[0]}; leave it out")
    for file in plugin:
        load_plugin(file)
    given = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(ShapeOptions)
        if getattr(shape, field.name) != field.default
        and not router
        and not (hf and field.name == "sequence")
    ]
    if suite and batch != 1:
        given.append("--batch")
    if given:
        also = " and --hf" if given[0] in ("--batch", "--sequence") else ""
        raise UserError(
            f"{given[0]} belongs to --router{also}, and {chosen[0]} has its own shape; leave it out"
        )
    asked: dict[str, Any] = {
        "convention": convention,
        "compare": compare_conventions,
        "profile": profile,
    }
    statements: list[Statement] = []
    if suite:
        statements.extend(_suite_statements(suite, plugin, phase, past, asked))
    elif hf:
        sequence = 2048 if shape.sequence is None else shape.sequence
        load = _workload(batch, sequence, phase, past)
        statements.extend(_family_statements(hf, load, asked))
    else:
        size = shape.resolved()
        load = _workload(batch, size.sequence, phase, past)
        options = parsed_options(option)
        statements.extend(router_statement(name, options, size.model, load, **asked) for name in router)
    print(FORMATS[format](statements))
    wrong = differing(statements)
    for one in wrong:
        print(
            f"modbench: {one.name}: the closed form says {one.flops:,}, the counter {one.profiled:,}",
            file=sys.stderr,
        )
    return 1 if wrong else 0


def _workload(batch: int, sequence: int, phase: str, past: int) -> Workload:
    try:
        return Workload.uniform(batch, sequence, phase, past)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error


def _family_statements(
    files: Sequence[Path], load: Workload, asked: dict[str, Any]
) -> Iterator[Statement]:
    from modbench.accounting.families import load_config, misspelt

    for file in files:
        config = load_config(file)
        for key, meant in misspelt(config):
            print(
                f"modbench: config {file}: key '{key}' is not read; did you mean '{meant}'?",
                file=sys.stderr,
            )
        try:
            yield family_statement(config, load, name=str(file), **asked)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error


def _suite_statements(
    suite: str, plugins: Sequence[Path], phase: str, past: int, asked: dict[str, Any]
) -> Iterator[Statement]:
    """One for each scheme and shape, at the batch and sequence that the suite trains it on; routers of
    ``plugins`` join in as they do in `modbench run`."""
    from modbench.sweep.cells import with_plugins
    from modbench.sweep.suite import load_suite
    from modbench.train.config import TrainConfig

    loaded = with_plugins(load_suite(suite), plugins)
    for shape in loaded.shapes:
        for scheme in loaded.schemes:
            train = {**loaded.train, **scheme.train}
            batch = train.get("batch", TrainConfig.batch)
            sequence = train.get("sequence", TrainConfig.sequence)
            load = _workload(batch, sequence, phase, past)
            name = " ".join(filter(None, (scheme.label, shape.label)))
            yield router_statement(scheme.router, scheme.options, shape.model, load, name=name, **asked)


def parsed_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs, each value as TOML reads it, or a string if it is no TOML.

    Raises:
        UserError: what is no such pair, or a name that comes twice.
    """
    import tomllib

    options: dict[str, Any] = {}
    written: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--option {pair}: it must be NAME=VALUE, such as capacity=0.25")
        if name in written:
            raise UserError(
                f"--option {name} is given twice, as {written[name]} and as {value}; give it once"
            )
        written[name] = value
        try:
            options[name] = tomllib.loads(f"value = {value}")["value"]
        except (ValueError, RecursionError):  # TOML, too, that Python has no value for
            options[name] = value
    return options


def gate(
    *,
    accept: bool = False,
    golden: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    plugin: Plugins = (),
) -> int:
    """Compare what routers spend on reference shapes with a committed table, by ==; exit code 1 if a
    count changed, is missing or is new.

    Example: modbench flops gate --plugin my_router.py --golden my_router.flops.json

    Args:
        accept: write the table instead
        golden: the table, a JSON file; by default that of the built-in routers
        plugin: Python files whose routers are compared; by default the built-in routers are
    """
    from modbench.accounting.gate import GOLDEN, run_gate

    return run_gate(golden or GOLDEN, plugins=plugin, accept=accept)
