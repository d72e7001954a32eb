"""The README's table is that of the committed results, and its columns are explained."""

import re

from readme_table import COLUMNS, PAGES, ROOT, filled, rows, texts

READING = PAGES["row"].read_text()


def test_the_tables_are_those_of_the_committed_results() -> None:
    for page in PAGES.values():
        assert page.read_text() == filled(page.read_text(), texts()), page.name


def test_the_table_has_at_most_eight_columns_and_a_row_for_each_scheme() -> None:
    assert len(COLUMNS) <= 8
    found = list(rows())
    assert all(len(row) == len(COLUMNS) for row in found)
    assert "vanilla" in {row[1] for row in found}


def test_every_column_is_explained_by_its_heading() -> None:
    explained = set(re.findall(r"^\| ([^|]+) \| \S", READING, flags=re.MULTILINE))
    page = (ROOT / "results" / "quick" / "leaderboard.md").read_text()
    heading = next(line for line in page.splitlines() if line.startswith("| rank"))
    columns = {cell.strip() for cell in heading.strip("|").split("|")}
    assert not {*COLUMNS, *columns} - explained


def test_the_figures_in_the_text_are_those_of_the_table() -> None:
    found = {row[1]: row for row in rows()}
    mod, dense, text = found["mod"], found["vanilla"], " ".join(READING.split())
    for words in (mod[2], mod[3], mod[4], dense[3], dense[4], mod[6]):
        assert words.replace(" M", " million") in text, words


def test_what_the_readme_says_of_the_controls_follows_from_the_table() -> None:
    loss = {row[1]: float(row[2]) for row in rows()}
    text = " ".join(PAGES["table"].read_text().split())
    mod, dense, shallow = loss["mod"], loss["vanilla"], loss["vanilla, 2 layers"]
    for number in (mod, shallow, loss["mod:stride"]):
        assert f"{number:.4f}" in text
    assert f"recovers {(dense - shallow) / (dense - mod):.0%} of MoD's lead".replace("%", " %") in text
