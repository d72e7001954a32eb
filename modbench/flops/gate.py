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
from modbench.model.registry import build_router, load_plugin, router_names

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


def run_gate(
    golden: Path,
    *,
    routers: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    accept: bool = False,
    command: str = "modbench flops gate --accept",
) -> int:
    """0 if the table at ``golden`` is what the routers (all, by default) spend now; else prints what
    differs and returns 1. ``accept`` writes the new table instead.

    Raises:
        UserError: the table is missing or not one, or a router is unknown.
    """
    for plugin in plugins:
        load_plugin(plugin)
    now = current(routers or router_names())
    if accept:
        half = golden.with_suffix(".half")
        half.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        os.replace(half, golden)
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
    if not isinstance(table, dict) or not all(isinstance(value, int) for value in table.values()):
        raise UserError(f"FLOP table {golden} must map keys to whole numbers; make it again: {command}")
    return table
