"""The README's table is that of the committed results, and its columns are explained."""

import re

from readme_table import LEADERBOARD, READING, README, filled, first_table, texts

from modbench.report.leaderboard.columns import FIRST


def _rows() -> dict[str, list[str]]:
    """The cells of each row by scheme."""
    lines = [line.strip("| ").split(" | ") for line in first_table()[2:]]
    return {line[0]: line for line in lines}


def _words(page: str) -> str:
    return " ".join(page.split())


def test_the_tables_are_those_of_the_committed_results() -> None:
    for page in (README, READING):
        assert page.read_text() == filled(page.read_text(), texts()), page.name


def test_the_table_has_at_most_eight_columns_and_a_row_for_each_scheme() -> None:
    heading = first_table()[0].strip("| ").split(" | ")
    assert heading == [column.heading for column in FIRST[1:]]  # one seed: no groups
    assert len(heading) <= 8
    assert all(len(row) == len(heading) for row in _rows().values())
    assert "vanilla" in _rows()


def test_every_column_of_the_page_is_explained_by_its_heading() -> None:
    page = LEADERBOARD.read_text()
    for explanation in (page, READING.read_text()):
        explained = set(re.findall(r"^\| ([^|]+) \| \S", explanation, flags=re.MULTILINE))
        for heading in re.findall(r"^\| (.*) \|\n\| --", page, flags=re.MULTILINE):
            if re.search(r"layer \d+ adds", heading):  # a sentence above it explains them
                continue
            assert heading == "column | meaning | better" or not {*heading.split(" | ")} - explained


def test_the_figures_in_the_text_are_those_of_the_table() -> None:
    mod, dense, text = _rows()["mod"], _rows()["vanilla"], _words(READING.read_text())
    for words in (mod[1], mod[3], mod[4], dense[3], dense[4], mod[6]):
        assert words.replace(" M", " million") in text, words
