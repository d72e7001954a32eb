"""What a router's model spends, from the closed forms alone: nothing is allocated, nothing runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from modbench.errors import UserError
from modbench.flops.ledger import Ledger, Load, Phase
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.model.registry import build_router, load_plugin


def flops_table(
    router: str,
    *,
    options: Mapping[str, Any],
    model: ModelConfig,
    sequence: int,
    batch: int,
    phase: Phase,
    convention: str,
    plugins: Sequence[Path] = (),
) -> str:
    """FLOPs by component, in all and per token, beside the dense model of the same shape; nominal
    routing. Text for a terminal.

    Raises:
        UserError: an unknown router, option, phase or convention, or a shape that can't be.
    """
    for name, value in (("sequence", sequence), ("batch", batch)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")
    for plugin in plugins:
        load_plugin(plugin)
    load = Load.uniform(batch, sequence, phase)
    with torch.device("meta"):
        routed = Decoder(model, build_router(router, options))
        dense = Decoder(model, build_router("vanilla"))
    ledger, dense_ledger = routed.ledger(load), dense.ledger(load)
    total, tokens = ledger.total(convention), load.tokens
    ratio = total / dense_ledger.total(convention)
    lines = [
        f"{router}, {phase}, {batch} x {sequence} tokens, convention {convention} (nominal routing)",
        "",
        *_rows(ledger, convention, tokens),
        "",
        f"parameters             {routed.parameter_count('total'):>18,}",
        f"active parameters      {routed.parameter_count('active'):>18,}",
        f"ratio to dense (vanilla, same shape) {ratio:.4f}",
    ]
    return "\n".join(lines)


def _rows(ledger: Ledger, convention: str, tokens: int) -> list[str]:
    names = list(ledger.by_component(convention))
    forward = {
        name: Ledger(
            {key: flops for key, flops in ledger if key[1] == name and key[2] == "forward"}
        ).total(convention)
        for name in names
    }
    both = ledger.by_component(convention)
    total = ledger.total(convention)
    rows = [
        f"{'component':<18}{'forward':>18}{'backward':>18}{'FLOPs':>18}{'per token':>15}{'share':>8}"
    ]
    for name in names:
        rows.append(_row(name, forward[name], both[name], tokens, total))
    rows.append(_row("total", ledger.total(convention, "forward"), total, tokens, total))
    return rows


def _row(name: str, forward: int, both: int, tokens: int, total: int) -> str:
    return (
        f"{name:<18}{forward:>18,}{both - forward:>18,}{both:>18,}{both / tokens:>15,.1f}"
        f"{both / total:>8.1%}"
    )
