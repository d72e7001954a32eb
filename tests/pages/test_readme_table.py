"""The table of quick in the pages is that of the committed results, and its columns are explained."""

import re

from readme_table import LEADERBOARD, READING, README, START, filled, first_table, texts

from modbench.report.leaderboard.columns import FIRST
from modbench.sweep.suite import load_suite


def test_the_tables_are_those_of_the_committed_results() -> None:
    for page in (README, START, READING):
        assert page.read_text() == filled(page.read_text(), texts()), page.name


def test_the_table_has_the_first_columns_and_a_row_for_each_scheme() -> None:
    heading, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in first_table())
    assert heading == [column.heading for column in FIRST]
    assert sorted(row[1] for row in rows) == sorted(s.label for s in load_suite("quick").schemes)


def test_every_column_of_the_page_is_explained_by_its_heading() -> None:
    page = LEADERBOARD.read_text()
    for explanation in (page, READING.read_text()):
        explained = set(re.findall(r"^\| ([^|]+) \| \S", explanation, flags=re.MULTILINE))
        for heading in re.findall(r"^\| (.*) \|\n\| --", page, flags=re.MULTILINE):
            if re.search(r"layer \d+ adds", heading):  # a sentence above it explains them
                continue
            assert heading == "column | meaning | better" or not {*heading.split(" | ")} - explained
