"""docs/depth.md: its tables and sentences are those of the committed files."""

import re

import depth_page
import pytest
from depth_page import PAGE, filled, texts
from depth_runs import what_if

from modbench.analysis.noise import Run, Spread

TEXT = PAGE.read_text()


def test_the_tables_and_sentences_are_those_of_the_committed_results() -> None:
    assert filled(TEXT, texts()) == TEXT, "run python tools/depth_page.py"


def test_no_number_and_no_verdict_is_written_by_hand() -> None:
    prose = re.sub(r"<!-- (?!end)[a-z]+ -->.*?<!-- end -->", "", TEXT, flags=re.DOTALL)
    prose = re.sub(r"\([^)]*\.(?:md|png)[^)]*\)|95 %", "", prose)  # targets of links
    assert not re.findall(r"\d", prose)
    assert not re.findall(r"\b(?:worse|undecided|equivalent|separable)\b", prose)


def difference(budget: str, layers: str = "", verdict: str = "better") -> dict[str, str]:
    """A line of differences.csv: MoD is .05 nats below dense."""
    return {
        "budget": budget,
        "layers": layers,
        "scheme": "mod",
        "minus": "vanilla",
        "family": "dense, equal depth" if layers else "dense",
        "difference": "-0.05",
        "difference_low": "-0.07",
        "difference_high": "-0.03",
        "p_adjusted": "0.012",
        "verdict": verdict,
        "lower_in": "",
    }


def optimum(budget: str, scheme: str, depths: str) -> dict[str, str]:
    """A line of optima.csv: the first of ``depths`` is the best one."""
    return {
        "budget": budget,
        "fit": "parabola",
        "scheme": scheme,
        "loss": "2.7",
        "layers": depths.split()[0],
        "layers_compared": depths if " " in depths else "",
        "difference_low": "-0.07",
        "difference_high": "-0.03",
    }


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, str]]]:
    """The CSV files that the page reads: one budget with a choice of depths, one without."""
    found = {
        "optima.csv": [
            *(optimum("1e13", scheme, "8 4") for scheme in ("mod", "vanilla")),
            *(optimum("3e13", scheme, "4") for scheme in ("mod", "vanilla")),
        ],
        "differences.csv": [
            difference("1e13"),
            difference("3e13", verdict="undecided"),
            *(difference("1e13", depth) for depth in ("4", "8")),
            difference("3e13", "4", verdict="undecided"),
        ],
    }
    monkeypatch.setattr(depth_page, "read", lambda name: found[name])
    monkeypatch.setattr(depth_page, "scatters", lambda budget: {8: Spread(0.03, 2)})
    monkeypatch.setattr(depth_page, "noise", lambda: 0.02)
    return found


LOW = "lower by 0.0500 (0.0300 to 0.0700)"


@pytest.mark.usefixtures("tables")
def test_each_sentence_names_its_budgets() -> None:
    best, eight = depth_page.answer().splitlines()
    assert best == (
        "1. Each at its own best depth, Mixture-of-Depths is better than the dense model at 1e13 FLOPs: "
        f"its loss is {LOW} at 1e13, adjusted p 0.012."
    )
    assert eight.startswith("2. Both with 8 layers, it is better than the dense model at 1e13 FLOPs")
    lines = [difference("1e13", "8"), difference("3e13", "8", verdict="undecided")]
    assert depth_page.verdicts(lines, "vanilla") == (
        "better than the dense model at 1e13, and not separable from the dense model at 3e13 FLOPs: its "
        f"loss is {LOW} at 1e13, adjusted p 0.012; {LOW} at 3e13, adjusted p 0.012"
    )
    assert "At 3e13 FLOPs not both have an interior optimum at two depths" in depth_page.excluded()
    assert "leaves out a gain of more than 0.070 nats and any loss by the" in depth_page.excluded()
    assert "mod at 1e13 FLOPs (8 layers, the largest)" in depth_page.excluded()
    _, deep = depth_page.in_two_sentences("depth.md")
    assert deep.endswith("by up to 0.0300 nats, where the noise of a run is 0.0200.")


def test_a_gain_at_a_fixed_depth_only_is_called_no_gain(
    tables: dict[str, list[dict[str, str]]],
) -> None:
    assert "do not differ in kind" in depth_page.sense()
    tables["differences.csv"][0]["verdict"] = "undecided"  # at the best depth
    assert "helps with 8 layers at 1e13 FLOPs; where each" in depth_page.sense()
    assert "Random routing" not in depth_page.sense()
    tables["differences.csv"].append(difference("1e13", "8") | {"scheme": "mod:gaussian"})
    assert "Random routing is better than the dense model with 8 layers" in depth_page.sense()


def test_without_a_choice_of_depths_there_is_no_sentence_on_the_best(
    tables: dict[str, list[dict[str, str]]],
) -> None:
    for line in tables["optima.csv"]:
        line["layers"], line["layers_compared"] = "4", ""
    assert "own best depth" not in depth_page.answer()
    (only,) = depth_page.in_two_sentences("depth.md")
    assert only.startswith("With 8 layers for both, it is better than the dense model at 1e13 FLOPs")
    assert depth_page.excluded().startswith("At 1e13 and 3e13 FLOPs not both")


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
