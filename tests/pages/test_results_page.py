"""docs/results.md: its tables are those of the committed files, and its text says what they say."""

import re

import pytest
from results_page import PAGE, ROOT, filled, optima, planned_table, read, texts

TEXT = PAGE.read_text()
PROSE = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))


def test_the_tables_are_those_of_the_committed_results() -> None:
    assert filled(TEXT, texts()) == TEXT, "run python tools/results_page.py"


@pytest.mark.slow
def test_the_planned_cost_is_that_of_the_suites() -> None:
    assert filled(TEXT, {"planned": planned_table()}) == TEXT


def test_every_loss_in_the_text_stands_in_a_table() -> None:
    tables = [line for line in TEXT.splitlines() if line.startswith("|")]
    named = re.findall(r"\b\d\.\d{4}\b", PROSE)
    assert named
    for number in named:
        assert any(number in line for line in tables), number


def test_the_lead_at_one_shape_is_that_of_the_first_table() -> None:
    quick = read(ROOT / "results" / "quick" / "leaderboard.csv")
    loss = {line["label"]: float(line["heldout_loss"]) for line in quick}
    assert f"MoD leads by {loss['vanilla'] - loss['mod']:.2f} nats" in " ".join(PROSE.split())


def test_the_text_says_of_mod_what_the_table_says() -> None:
    verdicts = {
        line["budget"]: line["difference_verdict"] for line in optima() if line["scheme"] == "mod"
    }
    assert verdicts == {str(3 * 10**12): "undecided", str(10**13): "undecided", str(3 * 10**13): "worse"}
    assert "shows no gain over the dense model, and is probably worse at the largest budget" in PROSE
