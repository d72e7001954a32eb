"""Writes ``docs/audit.md``: the audit of each built-in router, preset and known bug.
``nox -s audit``, with ``-- --check`` to compare only.

All of it comes from running the probes: the same code and machine type give the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import fill

import torch
from mutants import Depth
from subtle_mutants import MUTANTS

from modbench.measure.audit import PROBES, Finding, audit
from modbench.measure.audit.warmed import warmed
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import installed_modules, preset_options, router_class
from modbench.train.numerics import make_deterministic

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
#: Four layers, since recursions share some; all else is small, to make the page quickly.
SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
MUTANT_SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
SIGNS = {"passed": "✓", "failed": "**✗**", "not asked": "·", "unchecked": "?"}

HEAD = """# Audit of the built-in routers

After reading this page you can say what each probe of the audit tests, what a failure means, and
which bugs the audit finds and which it cannot find.

✓ passed, **✗** failed, · not asked (the probe does not apply to the scheme), ? unchecked (it
applies to a layer but cannot be evaluated there). Run the probes on your own router with `modbench
audit NAME --plugin FILE`; they are defined in `modbench/measure/audit/`. Made by `nox -s audit`; do
not edit.
"""

TAIL = """
## What the audit cannot find

- State outside the attributes of modules and their classes: in closures, other objects, global
  variables, other modules or files.
- Bugs at other lengths, batch sizes and dtypes: it tests an odd shape and that of the run, in float64
  and in the model's own dtype, where a leak passes if rounding could explain it. Probe 9 also tests
  a small model with grouped-query attention and a GELU MLP, if the router accepts it.
- Work outside PyTorch's matmuls: in numpy, in other threads, or as sums of pointwise products. The
  count is of what the counter sees.
- Code that detects the counter or the audit and behaves differently.
- Active parameters that are reported too high: probe 9 asks for as many as the FLOPs of a token
  imply.
- An equation that differs from the paper's: which gate multiplies an expert's output, the direction
  in which a bias is updated, what a predictor learns. The tests compare the built-in schemes with
  plain loops of the papers' equations and with Hugging Face's layers.
- A gradient of the wrong size, except the scale of a depth router's: probe 8 asks whether
  cross-entropy reaches each scorer (a module named `router`) and each other parameter with `router`
  in its name; the other parameters of scorers and of the scheme's own classes may be reached by an
  auxiliary loss instead, whatever their names. A gate detached for one expert only is not found.
- Wasted work that the ledger counts: declared waste is not flagged; it is part of the FLOPs in the
  table.
- A bug that needs weights or text that a few training steps on random tokens do not produce.
- A causal rule that selects too few or too many tokens. Probe 4 reports the share, and the table
  marks one more than 1.5 times above or below the nominal capacity.
- The inside of a layer that skips tokens and does not hold exactly one plain block: `?` above."""


def built_in() -> list[str]:
    """Every router of this package, and every preset as ``NAME:PRESET``."""
    names = [name for name, place in installed_modules().items() if place.startswith("modbench.")]
    return [
        one for name in names for one in (name, *(f"{name}:{p}" for p in router_class(name).presets))
    ]


def lines(name: str, findings: list[Finding]) -> str:
    return f"| {name} | {' | '.join(SIGNS[finding.verdict] for finding in findings)} |"


def page() -> Iterator[str]:
    heading = f"| | {' | '.join(f'{probe.number} {probe.name}' for probe in PROBES)} |"
    rule = f"| --- | {' | '.join([':-:'] * len(PROBES))} |"
    yield HEAD
    yield "## What a failure means\n"
    for probe in PROBES:
        yield f"### {probe.number} {probe.name}\n\n{fill(probe.means, 105)}\n"
    yield "## Built-in routers and presets\n"
    yield "After eight training steps on random tokens, at 3 x 63 tokens.\n"
    yield heading
    yield rule
    for name in built_in():
        router, options = preset_options(name)
        yield lines(name, audit(warmed(SHAPE, router, options, 3, 32)))
    yield "\n## Known bugs\n"
    yield "A correct router (`right`), and a mutant of it for each bug found in public ports.\n"
    yield heading
    yield rule
    figures = []
    for bug in MUTANTS:
        findings = audit(build_model(MUTANT_SHAPE, Depth(bug=bug), seed=4))
        yield lines(bug, findings)
        figures += [(bug, finding) for finding in findings if finding.failed]
    yield "\nFigures of the failed probes:\n"
    for bug, finding in figures:
        yield f"- {bug}: {finding.probe} {finding.name}: {finding.figure}"
    yield TAIL


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/audit.md.")
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    only_check = parser.parse_args().check
    make_deterministic()
    torch.set_num_threads(1)  # more threads are slower at this size
    text = "\n".join(page()) + "\n"
    if not only_check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() == text:
        return 0
    print(f"{PAGE.name} is not what the audit says now; run nox -s audit", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
