"""Writes ``docs/audit.md``, what to do about each probe and the audit of each built-in router, and
``docs/known_bugs.md``, the audit of each known bug.
``nox -s audit``, with ``-- --check`` to compare only.

All of it comes from running the probes: the same code and machine type give the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import fill

import torch

from modbench.audit import PROBES, Finding, audit
from modbench.audit.warmed import warmed
from modbench.model.config import ModelConfig
from modbench.routing.build import build_model
from modbench.routing.registry import installed_modules, preset_options, router_class
from modbench.train.numerics import make_deterministic

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "audit"))
from mutants import MUTANTS, Depth  # noqa: E402

DOCS = ROOT / "docs"
PAGE, BUGS = DOCS / "audit.md", DOCS / "known_bugs.md"
#: Four layers, since recursions share some; all else is small, to make the page quickly.
SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=64)
MUTANT_SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
SIGNS = {"passed": "✓", "failed": "**✗**", "not asked": "·", "unchecked": "?"}
HEADING = "\n".join(
    (
        f"| | {' | '.join(f'{probe.number} {probe.name}' for probe in PROBES)} |",
        f"| --- | {' | '.join([':-:'] * len(PROBES))} |",
    )
)

HEAD = """# The audit

After reading this page you can say what each probe of the audit tests, what to do about a failure,
and which bugs the audit cannot find.

Run it on your own router with `modbench check FILE`, or `modbench audit NAME --plugin FILE` for
another shape. Each probe has one of four verdicts: passed (✓ below), failed (**✗**), not asked (·, it
does not apply to the scheme) or unchecked (?, it applies to a layer but cannot be evaluated there).
A router that fails probe 1, 2, 3 or 9 is not ranked. Each run repeats probes 1 and 2 on its trained
weights. The probes are defined in `modbench/audit/`; [known bugs](known_bugs.md) shows which
probe finds which bug. Made by `nox -s audit`; do not edit.

## What each probe means

The third column is what the audit prints of a router with a known bug. The link of a probe leads to
the likely causes.

| probe | a failure means | a failed line says, for example | what to do |
| --- | --- | --- | --- |"""

IN_EVERY_PROBE = """
## In every probe

Correct the failure of the lowest number first: later ones often follow from it. Three causes fail
several probes:

- BatchNorm mixes the tokens of a batch, padding included; normalise each token alone (RMSNorm,
  LayerNorm).
- Random scores: draw random numbers in training only, with `generator=tokens.generator`, not with numpy
  or random ([guide](writing_a_router.md#state)).
- Scoring that changes state: update buffers in `update` ([guide](writing_a_router.md#state)).
"""

#: The known bug whose figure stands for a failure of each probe: a common one with a short figure.
EXAMPLES = {
    1: "top-k at evaluation",
    2: "pool across sequences at evaluation",
    3: "decode never",
    4: "padding selected",
    5: "shows others",
    6: "double residual",
    7: "positions 0..k-1",
    8: "softmax over the selected",
    9: "ledger of decode forgets",
    10: "schedule outside state_dict",
    11: "masked but computed",
}

BUGS_HEAD = """# Known bugs and the probes that find them

After reading this page you can say which probes find a known bug, if you change a probe or add one.
[The audit](audit.md) says what a user does about a failure.

A correct router (`right`), and a mutant of it for each bug found in public ports
(`tests/audit/mutants.py`). ✓ passed, **✗** failed, · not asked,
? unchecked. Made by `nox -s audit`; do not edit.
"""

TAIL = """
## What the audit cannot find

- State outside the attributes of the router, of modules and of their classes, and outside the globals
  of the files that define them: in closures, other objects or other files. It is found if it changes a
  decision in one of three steps after resuming.
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
- A bug that needs weights or text that a few training steps on random tokens do not produce. Only
  leaks are also looked for with large router scores, up to 10 and up to 32, and in trained weights.
- A number of selected tokens that a loss or an `update` is to learn, and does not: probe 4 reports it.
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


@cache
def findings_of_bug(bug: str) -> list[Finding]:
    return audit(build_model(MUTANT_SHAPE, Depth(bug=bug), seed=4))


def overview() -> Iterator[str]:
    """Yield the rows of the table of probes: meaning, the start of an example's figure, remedy."""
    for probe in PROBES:
        finding = findings_of_bug(EXAMPLES[probe.number])[probe.number - 1]
        example = finding.figure.partition(";")[0].partition(" (at ")[0]
        name = f"{probe.number} {probe.name}"
        text = probe.text
        remedy = _with_guide(_sentence(text.remedy), text.guide)
        yield f"| [{name}](#{name.replace(' ', '-')}) | {text.means}. | *{example}* | {remedy} |"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _with_guide(words: str, anchor: str) -> str:
    return f"{words} ([guide](writing_a_router.md#{anchor}))." if anchor else f"{words}."


def audit_page() -> Iterator[str]:
    yield HEAD
    yield from overview()
    yield IN_EVERY_PROBE
    yield "## What to do about a failure\n"
    for probe in PROBES:
        text = probe.text
        meaning = fill(f"{text.means}; usually {text.usually}.", 105)
        yield f"### {probe.number} {probe.name}\n\n{meaning}\n"
        yield f"{_with_guide(_sentence(text.remedy), text.guide)}\n"
    yield "## Built-in routers and presets\n"
    yield "After eight training steps on random tokens, at 3 x 63 tokens.\n"
    yield HEADING
    for name in built_in():
        router, options = preset_options(name)
        yield lines(name, audit(warmed(SHAPE, router, options, 3, 32)))
    yield TAIL


def bugs_page() -> Iterator[str]:
    yield BUGS_HEAD
    yield HEADING
    figures = []
    for bug in MUTANTS:
        findings = findings_of_bug(bug)
        yield lines(bug, findings)
        figures += [(bug, finding) for finding in findings if finding.failed]
    yield "\nFigures of the failed probes:\n"
    for bug, finding in figures:
        yield f"- {bug}: {finding.probe} {finding.name}: {finding.figure}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/audit.md and docs/known_bugs.md.")
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    only_check = parser.parse_args().check
    make_deterministic()
    torch.set_num_threads(1)  # more threads are slower at this size
    pages = {PAGE: audit_page, BUGS: bugs_page}
    outdated = []
    for file, page in pages.items():
        text = "\n".join(page()) + "\n"
        if not only_check:
            file.write_text(text)
        elif file.read_text() != text:
            outdated.append(file.name)
    if outdated:
        named = " and ".join(outdated)
        print(f"not what the audit says now: {named}; run nox -s audit", file=sys.stderr)
    return int(bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
