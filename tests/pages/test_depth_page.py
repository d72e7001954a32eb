"""docs/depth.md: its tables and sentences are those of the committed files."""

import re

import pytest
from depth_page import PAGE, filled, texts, verdicts
from depth_runs import DENSE, what_if

from modbench.analysis.noise import Run

TEXT = PAGE.read_text()


def test_the_tables_and_sentences_are_those_of_the_committed_results() -> None:
    assert filled(TEXT, texts()) == TEXT, "run python tools/depth_page.py"


def test_no_number_and_no_verdict_is_written_by_hand() -> None:
    prose = re.sub(r"<!-- (?!end)[a-z]+ -->.*?<!-- end -->", "", TEXT, flags=re.DOTALL)
    prose = re.sub(r"\([^)]*\.(?:md|png)[^)]*\)", "", prose)  # targets of links
    assert not re.findall(r"\d", prose)
    assert not re.findall(r"\b(?:worse|undecided|equivalent|separable)\b", prose)


def test_one_budget_is_named_and_several_are_joined() -> None:
    def line(budget: str, verdict: str) -> dict[str, str]:
        ends = {"difference": "-0.05", "difference_low": "-0.07", "difference_high": "-0.03"}
        return {"budget": budget, "verdict": verdict, **ends}

    low = "lower by 0.0500 (0.0300 to 0.0700)"
    assert verdicts([line("1e13", "better")], DENSE) == (
        f"at 1e13 FLOPs better than the dense model: its loss is {low}"
    )
    both = verdicts([line("1e13", "better"), line("3e13", "better")], DENSE)
    where = f"{low} at 1e13 and {low} at 3e13 FLOPs"
    assert both == f"better than the dense model at every budget: its loss is {where}"


def test_what_ifs_are_those_of_the_runs_given() -> None:
    """MoD .1 nats lower at 8 layers, where the dense model is best with 4."""
    curve = {size: 3 + (index - 2) ** 2 / 10 for index, size in enumerate((1e5, 2e5, 4e5, 8e5, 16e5))}
    shift = {("vanilla", 4): 0.0, ("vanilla", 8): 0.2, ("mod", 4): 0.3, ("mod", 8): 0.1}
    runs = [
        Run(
            scheme=scheme,
            budget=10**13,
            size=size,
            tokens=1e6,
            loss=loss + lift + seed / 1e3,
            seed=seed,
            depth=depth,
        )
        for (scheme, depth), lift in shift.items()
        for size, loss in curve.items()
        for seed in (0, 1)
    ]
    own, deep, control, deep_control = what_if(runs)[10**13]
    assert own is not None
    assert deep is not None
    assert (own.value, deep.value) == (pytest.approx(0.1), pytest.approx(-0.1))
    assert control is deep_control is None
