"""Writes the table of ``docs/audit.md``, the audit of each built-in router, and
``tests/audit/known_bugs.md``, the audit of each known bug.
``nox -s audit``, with ``-- --check`` to compare only.

All of it comes from running the probes: the same code and machine type give the same bytes.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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
PAGE, BUGS = DOCS / "audit.md", ROOT / "tests" / "audit" / "known_bugs.md"
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

TABLE = "## Built-in routers and presets\n"
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

Read what this page loses when you change a probe. `docs/audit.md` says what a user does about a failure.

A correct router (`right`), and a mutant of it for each bug found in public ports
(`tests/audit/mutants.py`). ✓ passed, **✗** failed, · n/a,
? unchecked. Made by `nox -s audit`; do not edit.
"""


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


def audit_page() -> Iterator[str]:
    """Yield the page with its table made again."""
    before, _, rest = PAGE.read_text().partition(TABLE)
    yield before + TABLE
    yield "After eight training steps on random tokens, at 3 x 63 tokens. Made by `nox -s audit`.\n"
    yield HEADING
    for name in built_in():
        router, options = preset_options(name)
        yield lines(name, audit(warmed(SHAPE, router, options, 3, 32)))
    yield "\n## " + rest.partition("\n## ")[2].rstrip("\n")


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
    parser = argparse.ArgumentParser(description="Write docs/audit.md and tests/audit/known_bugs.md.")
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
