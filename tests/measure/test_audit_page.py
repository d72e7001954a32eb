"""docs/audit.md has a row for each router, preset and known bug, as the audit gives it."""

import re

import pytest
from audit_page import MUTANT_SHAPE, PAGE, built_in, lines
from mutants import Depth
from subtle_mutants import MUTANTS

from modbench.measure.audit import PROBES, audit
from modbench.routing.build import build_model


def rows() -> dict[str, str]:
    found = re.findall(r"^\| (\S.*?) \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: cells for name, cells in found if name[0] not in "|-"}  # no heading, no rule


def test_nothing_is_missing_and_nothing_is_gone() -> None:
    assert list(rows()) == [*built_in(), *MUTANTS]


def test_every_router_has_no_failure_and_every_mutant_one() -> None:
    for name, cells in rows().items():
        assert len(cells.split(" | ")) == len(PROBES)
        assert ("✗" in cells) == (name in MUTANTS and name != "right"), name


@pytest.mark.parametrize("bug", ["right", "k - 1", "drifts at evaluation"])
def test_a_row_is_what_the_audit_says(bug: str) -> None:
    findings = audit(build_model(MUTANT_SHAPE, Depth(bug=bug), seed=4))
    assert lines(bug, findings) in PAGE.read_text()
