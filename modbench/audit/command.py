"""The backend of ``modbench audit``: audits a router with random weights on random text."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from modbench.audit import PROBES, Finding, findings
from modbench.audit.warmed import LONG, ODD, fitting, warmed
from modbench.errors import UserError
from modbench.model.sizes import ShapeOptions
from modbench.records.probes import PROBE_TEXTS
from modbench.routing.plugin_fault import authors_code
from modbench.routing.registry import build_router, load_plugin, preset_options, router_class
from modbench.train.numerics import make_deterministic
from modbench.train.out_of_memory import failed_allocation, out_of_memory_sentence


def run_audit(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    plugins: Sequence[Path] = (),
    shape: ShapeOptions | None = None,
    seed: int = 0,
    format: Literal["table", "json"] = "table",
) -> int:
    """Audit the router ``name`` (``NAME`` or ``NAME:PRESET``) with ``options`` in a decoder of
    ``shape``, at 3 x 63 tokens and at 2 sequences of its length, on one thread. Print a line per probe
    as it ends, or one JSON document. Return 1 if a probe failed, else 0. Raise a `UserError` for invalid
    arguments, a router that cannot take a training step, or too little memory."""
    for plugin in plugins:
        load_plugin(plugin)
    router, chosen = preset_options(name)
    chosen |= options or {}
    size = (shape or ShapeOptions()).resolved()
    if not 0 <= seed < 2**32:
        raise UserError(f"seed is {seed}; it must lie in [0, 2**32)")
    if size.sequence < 2:
        raise UserError(f"sequence is {size.sequence}; an audit needs 2 tokens or more")
    make_deterministic()
    torch.set_num_threads(1)  # at the sizes of an audit, more are slower
    shapes = (ODD, (LONG, size.sequence))
    with _enough_memory():
        config, note = fitting(size.model, build_router(router, chosen))
        with authors_code(router_class(router), "a training step"):
            model = warmed(config, router, chosen, seed, size.sequence)
        if format == "table":
            print(f"{name}: {ODD[0]} x {ODD[1]} and {LONG} x {size.sequence} tokens{note}", flush=True)
        found = findings(model, shapes=shapes, seed=seed)
        results = printed(found) if format == "table" else list(found)
    failed = any(finding.failed for finding in results)
    if format == "json":
        document = {
            "router": router,
            "options": model.router.options(),
            "model": asdict(config),
            "sequence": size.sequence,
            "seed": seed,
            "passed": not failed,
            "probes": [asdict(finding) for finding in results],
        }
        print(json.dumps(document))
    return int(failed)


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Raise a `UserError` if what runs inside is out of memory."""
    try:
        yield
    except Exception as error:
        allocation = failed_allocation(error)
        if allocation is None:
            raise
        message = f"{out_of_memory_sentence(allocation)}; audit a smaller size or sequence"
        raise UserError(message) from error


def printed(found: Iterable[Finding]) -> list[Finding]:
    """Print a line of each finding as it is made; return all."""
    results = []
    for finding in found:
        print(line(finding), flush=True)
        results.append(finding)
    return results


def line(finding: Finding) -> str:
    """Format a finding as one line: aligned columns, or what a failure means and what to do."""
    if finding.failed:
        text = PROBE_TEXTS[finding.probe - 1]
        unranked = " Not ranked." if finding.ranks else ""
        return (
            f"FAILED {finding.probe} {finding.name}: {finding.figure}; {text.means} "
            f"(`modbench docs audit`).{unranked}"
        )
    wide = max(len(probe.name) for probe in PROBES)
    return f"{finding.probe:>2}  {finding.name:<{wide}}  {finding.verdict:<9}  {finding.figure}"
