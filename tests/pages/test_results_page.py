"""docs/results.md: its tables and sentences are those of the committed files."""

import re

import pytest
from results_page import PAGE, filled, planned_table, texts
from results_prose import against_dense, experts_in_words, pair_in_words, turned

TEXT = PAGE.read_text()


def line(scheme: str, budget: float, difference: float, verdict: str, **fields: str) -> dict[str, str]:
    values = {
        "scheme": scheme,
        "budget": str(budget),
        "difference": str(difference),
        "difference_low": str(difference - 0.02),
        "difference_high": str(difference + 0.02),
        "difference_verdict": verdict,
        "verdict": verdict,
    }
    return {**values, **fields}


def test_the_tables_and_sentences_are_those_of_the_committed_results() -> None:
    assert filled(TEXT, texts()) == TEXT, "run python tools/results_page.py"


@pytest.mark.slow
def test_the_planned_cost_is_that_of_the_suites() -> None:
    assert filled(TEXT, {"planned": planned_table()}) == TEXT


def test_no_number_and_no_verdict_is_written_by_hand() -> None:
    """All of them stand in blocks that the page's script writes, but for those of a suite's name."""
    prose = re.sub(r"<!-- (?!end)[a-z]+ -->.*?<!-- end -->", "", TEXT, flags=re.DOTALL)
    prose = re.sub(r"\(\.\./[^)]*\)", "", prose)  # targets of links
    assert not re.findall(r"\d", prose)
    assert not re.findall(r"\b(?:better|worse|undecided|equivalent|no gain|separable)\b(?! than)", prose)


def test_a_verdict_is_that_of_the_record() -> None:
    lines = [line("mod", 1e13, -0.05, "better"), line("mod", 3e13, 0.01, "undecided")]
    assert against_dense(lines, "mod") == (
        "Mixture-of-Depths is better than the dense model at 1e13, and not separable from it at 3e13: "
        "its loss is lower by 0.0500 (0.0300 to 0.0700) at 1e13 and higher by 0.0100 (0.0100 lower to "
        "0.0300 higher) at 3e13 FLOPs."
    )
    lines[0]["difference_verdict"] = lines[1]["difference_verdict"] = "worse"
    assert "is worse than the dense model at every budget" in against_dense(lines, "mod")


def test_schemes_of_equal_verdicts_share_a_sentence() -> None:
    lines = [line(name, 1e13, -0.05, "better") for name in ("token_choice", "expert_choice")]
    sentence = experts_in_words(lines, ("token_choice", "expert_choice"))
    assert sentence.startswith("Token choice and expert choice are better than the dense model at every")
    lines[1]["difference_verdict"] = "undecided"
    sentence = experts_in_words(lines, ("token_choice", "expert_choice"))
    assert "; expert choice is at no budget separable from the dense model" in sentence


def test_a_pair_is_told_from_either_side() -> None:
    given = line("mod:gaussian", 1e13, 0.05, "worse", minus="mod", lower_in="", cells="")
    assert turned(given)["verdict"] == "better"
    assert "is better than the random control" in pair_in_words([given], "mod", "mod:gaussian")
