"""The table of ``docs/audit.md``, the audit of each built-in router, and ``tests/audit/known_bugs.md``,
that of each known bug. All of it comes from running the probes: the same code and type of machine give
the same bytes."""

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

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "audit"))
from mutants import MUTANTS, Depth  # noqa: E402

BUGS = ROOT / "tests" / "audit" / "known_bugs.md"
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

BUGS_HEAD = """# Known bugs and the probes that find them

Read what this page loses when you change a probe. `docs/audit.md` says what a user does about a failure.

A correct router (`right`), and a mutant of it for each bug found in public ports
(`tests/audit/mutants.py`). ✓ passed, **✗** failed, · n/a,
? unchecked. Made by `nox -s pages`; do not edit.
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


def audit_table() -> str:
    """A row for the built-in routers and presets with equal results, in the order of `built_in`."""
    deterministic()
    rows: dict[str, list[str]] = {}
    for name in built_in():
        router, options = preset_options(name)
        signs = lines("", audit(warmed(SHAPE, router, options, 3, 32)))
        rows.setdefault(signs, []).append(name)
    table = [HEADING]
    for signs, names in rows.items():
        whole = {name for name in names if all_presets(name) and all_presets(name) <= {*names}}
        shown = [
            f"`{name}` and presets" if name in whole else f"`{name}`"
            for name in names
            if name.partition(":")[0] not in whole or name in whole
        ]
        table.append(signs.replace("|  |", f"| {', '.join(shown)} |", 1))
    return "\n".join(table)


def all_presets(name: str) -> set[str]:
    return {one for one in built_in() if one.startswith(f"{name}:")}


def bugs_page() -> Iterator[str]:
    deterministic()
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


def deterministic() -> None:
    """Make the probes give the same bytes; more threads are slower at this size."""
    make_deterministic()
    torch.set_num_threads(1)
