"""README.md and docs/: their tables are those of the committed results, their prose has no number."""

import re

import pytest
from docs_tables import PAGES, ROOT, TEXTS, page_text, quick

from modbench.report.leaderboard.columns import FIRST

READING = (ROOT / "docs" / "reading_the_table.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_those_of_the_committed_results(page: str) -> None:
    text = (ROOT / page).read_text()
    assert page_text(text, without=("planned",)) == text, "run python tools/docs_tables.py"


@pytest.mark.slow
def test_the_planned_cost_is_that_of_the_suites() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert page_text(text, without={*TEXTS} - {"planned"}) == text


@pytest.mark.parametrize("page", ["docs/results.md", "docs/depth.md"])
def test_no_number_of_a_result_is_written_by_hand(page: str) -> None:
    text = (ROOT / page).read_text()
    prose = re.sub(r"<!-- (?!end)[a-z ]+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    prose = re.sub(r"\([^)]*\.(?:md|png|toml)[^)]*\)|95 %", "", prose)  # targets of links
    assert not re.findall(r"\d", prose)


def rows_of_quick() -> dict[str, list[str]]:
    """The cells of each row by scheme."""
    heading, _, *lines = (line.strip("| ").split(" | ") for line in quick().splitlines())
    return {line[heading.index("scheme")]: line for line in [heading, *lines]}


def test_every_column_of_the_page_is_explained_by_its_heading() -> None:
    page = (ROOT / "results" / "quick" / "leaderboard.md").read_text()
    for explanation in (page, READING):
        explained = set(re.findall(r"^\| ([^|]+) \| \S", explanation, flags=re.MULTILINE))
        for heading in re.findall(r"^\| (.*) \|\n\| --", page, flags=re.MULTILINE):
            if re.search(r"layer \d+ adds|scheme \| minus", heading):  # a sentence above explains them
                continue
            assert heading == "column | meaning | better" or not {*heading.split(" | ")} - explained


def test_quick_shows_the_columns_of_the_page_for_each_scheme() -> None:
    rows = rows_of_quick()
    heading = rows.pop("scheme")
    assert set(heading) <= {column.heading for column in FIRST}
    assert {"vanilla", "mod"} <= rows.keys()
    assert all(len(row) == len(heading) for row in rows.values())
