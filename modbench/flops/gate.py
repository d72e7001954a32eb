"""Holds FLOPs still: what each router spends on reference shapes against a committed table, by ==.

A change of a closed form is either meant, then the new table is accepted and the commit says why, or it
is a bug.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from modbench.errors import UserError
from modbench.flops.ledger import CONVENTIONS, PHASES, Load
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.model.registry import build_router, installed_modules, load_plugin

#: The table of the built-in routers.
GOLDEN = Path(__file__).with_name("golden.json")

#: Shapes by name, with the tokens of the one sequence that is counted.
SHAPES: Mapping[str, tuple[ModelConfig, int]] = {
    "1M": (ModelConfig(), 256),
    "124M": (
        ModelConfig(
            vocabulary=32_000,
            width=768,
            layers=12,
            heads=12,
            kv_heads=4,
            mlp_width=2048,
            tied_head=False,
        ),
        1000,
    ),
}

Table = dict[str, int]


def built_in() -> list[str]:
    """The routers of this package: what else is installed here is somebody else's to hold."""
    return [name for name, module in installed_modules().items() if module.startswith("modbench.")]


def current(routers: Sequence[str]) -> Table:
    """Nominal FLOPs of one sequence by ``router/shape/phase/convention``, options at their defaults."""
    table: Table = {}
    for name in routers:
        for shape, (model, sequence) in SHAPES.items():
            with torch.device("meta"):
                decoder = Decoder(model, build_router(name))
            for phase in PHASES:
                ledger = decoder.ledger(Load.uniform(1, sequence, phase))
                for convention in CONVENTIONS:
                    table[f"{name}/{shape}/{phase}/{convention}"] = ledger.total(convention)
    return table


def differences(golden: Table, now: Table) -> list[str]:
    """One line for each key that changed, is missing or is new."""
    lines = []
    for key in sorted({*golden, *now}):
        old, new = golden.get(key), now.get(key)
        if old is None:
            lines.append(f"new      {key}: {new:,}")
        elif new is None:
            lines.append(f"missing  {key}: was {old:,}")
        elif old != new:
            lines.append(f"changed  {key}: {old:,} -> {new:,} ({new / old - 1:+.4%})")
    return lines


def run_gate(golden: Path, *, plugins: Sequence[Path] = (), accept: bool = False) -> int:
    """0 if the table at ``golden`` is what the routers spend now: those that ``plugins`` register, or
    without plugins the built-in ones. Else prints what differs and returns 1. ``accept`` writes the new
    table instead.

    Raises:
        UserError: the table is missing or not one, it can't be written, or a plugin fails.
    """
    if plugins and golden == GOLDEN:
        raise UserError("--plugin needs --golden FILE: a plugin's counts stand in a table of their own")
    routers = [name for plugin in plugins for name in load_plugin(plugin)] or built_in()
    options = [f"--plugin {plugin}" for plugin in plugins]
    if golden != GOLDEN:
        options.append(f"--golden {golden}")
    command = " ".join(["modbench flops gate", *options, "--accept"])
    now = current(routers)
    if accept:
        half = golden.with_suffix(".half")
        try:
            half.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
            os.replace(half, golden)
        except OSError as error:
            raise UserError(f"FLOP table {golden} can't be written ({error.strerror})") from error
        print(f"{len(now)} FLOP counts accepted into {golden}")
        return 0
    found = differences(_read(golden, command), now)
    for line in found:
        print(line)
    if found:
        print(f"{len(found)} FLOP counts differ from {golden}; if that is meant: {command}")
        return 1
    print(f"{len(now)} FLOP counts equal {golden}")
    return 0


def _read(golden: Path, command: str) -> Table:
    try:
        table = json.loads(golden.read_bytes())
    except FileNotFoundError:
        raise UserError(f"FLOP table {golden} does not exist; make it with {command}") from None
    except ValueError as error:
        raise UserError(f"FLOP table {golden} is no JSON ({error}); make it again: {command}") from error
    if not isinstance(table, dict) or not all(type(value) is int for value in table.values()):
        raise UserError(f"FLOP table {golden} must map keys to whole numbers; make it again: {command}")
    return table
