"""The command `modbench audit`."""

import os
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.options import Plugins, RouterOptions, flat, parsed_options
from modbench.model.sizes import ShapeOptions


def audit(
    router: Annotated[Positional[str], arg(metavar="NAME[:PRESET]")],
    /,
    *,
    shape: OmitArgPrefixes[ShapeOptions],
    option: RouterOptions = (),
    seed: int = 0,
    format: Literal["table", "json"] = "table",
    plugin: Plugins = (),
) -> int:
    """Test a router before it is trained: causality, batch invariance, decode parity, capacity, bypass,
    FLOPs and more (modbench docs audit). The exit code is 1 if a probe fails.

    Example: modbench audit my_router --plugin my_router.py

    Args:
        router: name of a router (`modbench list routers`)
        shape: shape of the decoder
        option: options of the router; by default its defaults
        seed: seed of weights and tokens
        format: table: a line per probe; json: one JSON document on the last line
        plugin: Python files that register routers
    """
    # More threads are slower at this size; read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from modbench.audit.command import run_audit

    return run_audit(
        router,
        options=parsed_options(option),
        plugins=flat(plugin),
        shape=shape,
        seed=seed,
        format=format,
    )
