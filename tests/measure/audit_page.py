"""Writes ``docs/audit.md``: what each built-in router, preset and known bug shows to the audit.
``nox -s audit``, with ``-- --check`` to compare only.

Everything in it is found by running the probes: the same code and machine type give the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from mutants import Depth
from subtle_mutants import MUTANTS

from modbench.measure.audit import PROBES, Finding, audit
from modbench.measure.audit.command import warmed
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import installed_modules, preset_options, router_class
from modbench.train.numerics import make_deterministic

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
#: Four layers, so that recursions have some to share; what else is small makes the page quick.
SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
MUTANT_SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
SIGNS = {"passed": "✓", "failed": "**✗**", "not asked": "·", "unchecked": "?"}

HEAD = """# The audit of what is here

Made by `nox -s audit`; do not edit. ✓ passed, **✗** failed, · not asked: the scheme offers nothing that
the probe could ask, ? unchecked: it does, and the probe has no way to ask it. What the probes ask stands
in `modbench/measure/audit/`; run them on your own router with `modbench audit NAME --plugin FILE`.
"""

TAIL = """
## What the audit can't see

- State outside the scheme's own objects, classes and files: in another module, on disk.
- Lengths, batches and dtypes that it isn't given: it is given an odd shape and that of the run, in
  float64 and in the model's own dtype, where a leak is let pass that moves no more tokens than rounding
  may tip.
- Work that no matmul of PyTorch's does: through numpy, in threads of its own, by pointwise products that
  are summed. The count is of what the counter sees.
- Code that asks whether it is being counted, or audited, and then does something else.
- Whether an equation is the paper's: which gate an expert's output is multiplied by, which way a bias is
  pushed, what a predictor is taught. What is here is held against plain loops of the papers' equations,
  and against Hugging Face's layers, in the tests.
- A gradient of the wrong size, but for a depth router's scale: probe 8 asks whether cross-entropy
  reaches each parameter, and each row of a router's weight (E, D) whose layer shows its `load` (E,). A
  gate that is cut off behind a softmax still has some, by the denominators of the others.
- Waste that the ledger owns up to: it is charged, and stands in the FLOPs of the row.
- A bug that needs weights, or text, that a few training steps on random tokens don't give.
- Whether a share of tokens that the causal rule lets in is a good one: probe 4 tells it, and no more.
- What lies inside a layer that tokens skip and that holds no single plain block: that is ? above."""


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
    yield "## Built-in routers and presets\n"
    yield "After eight training steps on random tokens, at 3 x 63 tokens.\n"
    yield heading
    yield rule
    for name in built_in():
        router, options = preset_options(name)
        yield lines(name, audit(warmed(SHAPE, router, options, 3, 32)))
    yield "\n## Known bugs\n"
    yield "One router (`right`), and a mutant of it for each bug that public ports have.\n"
    yield heading
    yield rule
    figures = []
    for bug in MUTANTS:
        findings = audit(build_model(MUTANT_SHAPE, Depth(bug=bug), seed=4))
        yield lines(bug, findings)
        figures += [(bug, finding) for finding in findings if finding.failed]
    yield "\nWhat the failing probes say:\n"
    for bug, finding in figures:
        yield f"- {bug}: {finding.probe} {finding.name}: {finding.figure}"
    yield TAIL


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/audit.md.")
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    only_check = parser.parse_args().check
    make_deterministic()
    torch.set_num_threads(1)  # what is this small is slower with more
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
