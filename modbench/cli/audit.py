"""The command `modbench audit`: audits a router with random weights on random text."""

import json
import os
from dataclasses import asdict
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from modbench.cli.options import Plugins, RouterOptions, flat, parsed_options
from modbench.errors import UserError
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
    import torch

    from modbench.audit import findings, printed
    from modbench.audit.finding import return_freed_memory
    from modbench.audit.warmed import LONG, ODD, fitting, warmed
    from modbench.routing.plugin_fault import authors_code
    from modbench.routing.registry import build_router, load_plugin, preset_options, router_class
    from modbench.train.numerics import make_deterministic
    from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence

    for file in flat(plugin):
        load_plugin(file)
    name, options = preset_options(router)
    options |= parsed_options(option)
    size = shape.resolved()
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, 2**32)")
    if size.sequence < 2:
        raise UserError(f"sequence is {size.sequence}; an audit needs 2 tokens or more")
    make_deterministic()
    torch.set_num_threads(1)
    return_freed_memory(at_once=True)
    shapes = (ODD, (LONG, size.sequence))
    try:
        config, note = fitting(size.model, build_router(name, options))
        with authors_code(router_class(name), "a training step"):
            model = warmed(config, name, options, seed, size.sequence)
        if format == "table":
            print(f"{router}: {ODD[0]} x {ODD[1]} and {LONG} x {size.sequence} tokens{note}", flush=True)
        found = findings(model, shapes=shapes, seed=seed)
        results = printed(found) if format == "table" else list(found)
    except Exception as error:
        allocation = failed_allocation(error)
        if allocation is None:
            raise
        message = f"{out_of_memory_sentence(allocation)}; audit a smaller size or sequence"
        raise UserError(message) from error
    failed = any(finding.failed for finding in results)
    if format == "json":
        document = {
            "router": name,
            "options": model.router.options(),
            "model": asdict(config),
            "sequence": size.sequence,
            "seed": seed,
            "passed": not failed,
            "probes": [asdict(finding) for finding in results],
        }
        print(json.dumps(document))
    return int(failed)
