"""The audit catches each mutant with the right probe, and its page has what the audit says."""

import re

import pytest
from mutants import FOUND_BY, MUTANTS, SHAPE, Depth
from pages.audit import BUGS, HEADING, all_presets, built_in, lines
from pages.keys import ROOT

from modbench.audit import PROBES, audit, findings
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model

PROBE = {probe.number: probe for probe in PROBES}


def model(bug: str) -> Decoder:
    return build_model(SHAPE, Depth(bug=bug), seed=4)


def masked(text: str) -> str:
    return re.sub(r"[-+]?\d[\d,.]*(e[-+]\d+)?", "#", text)


@pytest.mark.parametrize("bug", FOUND_BY)
def test_the_right_probe_names_the_bug_and_says_where_and_how_much(bug: str) -> None:
    probe = PROBE[FOUND_BY[bug]]
    (finding,) = findings(model(bug), shapes=((3, 63),), only={probe.number})
    assert finding.failed
    figures = masked(BUGS.read_text())
    assert masked(f"- {bug}: {probe.number} {probe.name}: {finding.figure}") in figures


@pytest.mark.parametrize(
    "bug", ["right", *(pytest.param(bug, marks=pytest.mark.slow) for bug in FOUND_BY)]
)
def test_all_probes_say_of_a_mutant_what_is_on_the_page(bug: str) -> None:
    found = audit(model(bug))
    assert lines(bug, found) in BUGS.read_text()
    assert [finding.probe for finding in found] == [*PROBE]


def test_the_pages_have_each_router_and_each_bug() -> None:
    page, bugs = (ROOT / "docs" / "audit.md").read_text(), BUGS.read_text()
    tables = [
        re.findall(r"^\| (\S.*?) \| (.*) \|$", text.split(HEADING)[1], re.MULTILINE)
        for text in (page, bugs)
    ]
    routers = [name for names, _ in tables[0] for name in re.findall(r"`([\w:]+)`", names)]
    wholes = [name for names, _ in tables[0] for name in re.findall(r"`(\w+)` and presets", names)]
    routers += [preset for name in wholes for preset in all_presets(name)]
    assert sorted(routers) == sorted(built_in())
    assert [name for name, _ in tables[1]] == list(MUTANTS)
    for name, signs in tables[0] + tables[1]:
        assert ("✗" in signs) == (name in FOUND_BY), name
