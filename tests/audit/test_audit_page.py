"""docs/audit.md has a row for each router and preset, and what to do about each failure;
docs/known_bugs.md has a row for each known bug. Both are as the audit says."""

import re
from pathlib import Path

import pytest
from audit_page import BUGS, EXAMPLES, HEADING, MUTANT_SHAPE, PAGE, built_in, lines
from mutants import Depth
from subtle_mutants import MUTANTS

from modbench.audit import PROBES, audit
from modbench.routing.build import build_model


def rows(page: Path) -> dict[str, str]:
    table = page.read_text().split(HEADING)[1]
    return dict(re.findall(r"^\| (\S.*?) \| (.*) \|$", table, flags=re.MULTILINE))


def test_nothing_is_missing_and_nothing_is_gone() -> None:
    assert list(rows(PAGE)) == built_in()
    assert list(rows(BUGS)) == list(MUTANTS)


def test_every_router_has_no_failure_and_every_mutant_one() -> None:
    for name, cells in (rows(PAGE) | rows(BUGS)).items():
        assert len(cells.split(" | ")) == len(PROBES)
        assert ("✗" in cells) == (name in MUTANTS and name != "right"), name


def test_the_example_of_each_probe_is_a_figure_of_a_known_bug() -> None:
    row = r"^\| \[(\d+) (.+?)\]\(#[\w-]+\) \| .*? \| \*(.*?)\* \|"
    shown = re.findall(row, PAGE.read_text(), flags=re.MULTILINE)
    assert [int(number) for number, _, _ in shown] == [probe.number for probe in PROBES]
    for number, name, figure in shown:
        assert f"\n- {EXAMPLES[int(number)]}: {number} {name}: {figure}" in BUGS.read_text()


@pytest.mark.parametrize("bug", ["right", "k - 1", "drifts at evaluation"])
def test_a_row_is_what_the_audit_says(bug: str) -> None:
    findings = audit(build_model(MUTANT_SHAPE, Depth(bug=bug), seed=4))
    assert lines(bug, findings) in BUGS.read_text()
