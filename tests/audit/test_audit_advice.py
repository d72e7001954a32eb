"""The line of a failed probe: what was measured, what it means, what to do, and where to read on."""

import re
from pathlib import Path

import pytest

from modbench.audit import PROBES, Finding
from modbench.audit.advice import _CAUSES, advice
from modbench.cli.docs import topics
from modbench.records.probes import PROBE_TEXTS, ProbeText

ROOT = Path(__file__).parents[2]


def failed(probe: int, figure: str) -> Finding:
    (of,) = (one for one in PROBES if one.number == probe)
    return Finding(probe=probe, name=of.name, verdict="failed", figure=figure, ranks=of.ranks)


def text_of(number: int) -> ProbeText:
    return PROBE_TEXTS[number - 1]


def test_every_probe_has_advice_for_every_figure() -> None:
    assert [probe.number for probe in PROBES] == [*range(1, len(PROBES) + 1)]
    assert all(text for _, text, _, _ in _CAUSES)


def anchors(page: str) -> set[str]:
    """The sections of the page: its headings, and what it marks."""
    headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
    return {*(text.lower().replace(" ", "-") for text in headings), *re.findall(r'<a id="(.*?)">', page)}


@pytest.mark.parametrize("probe", [probe.number for probe in PROBES])
def test_every_link_leads_to_a_section(probe: int) -> None:
    causes = {text: words for of, text, words, _ in _CAUSES if probe in (of or (probe,))}
    for text, words in (causes | {"": f"{text_of(probe).means}; {text_of(probe).remedy}"}).items():
        said = advice(failed(probe, text))
        parts = re.fullmatch(r"(.*) \(`modbench docs (\w+)#([\w-]+)`\)\.", said)
        assert parts, said
        assert parts[1] == words
        assert parts[3] in anchors(topics()[parts[2]].read_text()), said


@pytest.mark.parametrize(
    ("bug", "probe", "words"),
    [
        ("top-k at evaluation", 1, "use a causal rule for prediction"),
        ("scoring is counted", 1, "update buffers in `update`"),
        ("drifts at evaluation", 10, "Scoring changes state"),
        ("cache mismatch", 3, "cache the keys of selected tokens only"),
        ("decode never", 3, "Generated text differs"),
        ("ties go to the latest", 4, "prefer the earlier one"),
        ("writes into its input", 5, "write to a copy"),
        ("loss of padding", 8, "leave padding out of it"),
        ("loss of sample 0 only", 8, "average over all tokens"),
        ("half of the parameters active", 9, "correct `active_parameters`"),
        ("ledger off by one matmul", 9, "correct a `ledger`"),
        ("schedule outside state_dict", 10, "register it as a buffer"),
    ],
)
def test_the_advice_on_a_known_bug_names_its_cause(bug: str, probe: int, words: str) -> None:
    page = (ROOT / "docs" / "known_bugs.md").read_text()
    (figure,) = re.findall(rf"^- {re.escape(bug)}: {probe} [\w -]+: (.*)$", page, flags=re.MULTILINE)
    assert words in advice(failed(probe, figure))


def test_an_error_of_the_routers_code_is_not_taken_for_a_leak() -> None:
    said = advice(failed(1, "raised KeyError: 'k' (mine.py, line 12) (at 3 x 63 tokens)"))
    assert said.startswith("The router's code raises an error here")
