"""README.md and docs/: their tables are those of the committed results, their prose has no number."""

import re
from pathlib import Path

import pytest
from made_up_records import make_record, store
from markdown_it import MarkdownIt
from pages.keys import ROOT, filled
from pages.results import TEXTS, first_table, wrong_claims

from modbench.records.metrics import METRICS

PAGES = ["README.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))]
COLUMNS_PAGE = (ROOT / "docs" / "columns.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_those_of_the_committed_results(page: str) -> None:
    text = (ROOT / page).read_text()
    texts = {name: of for name, of in TEXTS.items() if name != "planned"}
    assert filled(text, texts) == text, "run python tools/pages results"


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_claims_another_verdict_than_the_results_have(page: str) -> None:
    text = (ROOT / page).read_text()
    assert wrong_claims(text) == []
    # A line that begins with a comment is raw HTML: its ** and links would be shown as they are.
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "html_block"]
    assert not [block for block in blocks if "<!-- claim" in block]


def test_a_verdict_that_changes_makes_the_sentence_about_it_wrong(tmp_path: Path) -> None:
    claims = "<!-- claim s/ mod,other vanilla 1e12 better -->Both are better.<!-- end -->"
    losses = {"vanilla": 5.0, "mod": 4.5, "other": 4.6}

    def stored(name: str, **changed: float) -> Path:
        runs = [
            make_record(label, seed=seed, loss=loss + seed * len(label) / 1000)
            for label, loss in (losses | changed).items()
            for seed in range(3)
        ]
        return store(tmp_path / name / "s", runs).parent

    assert wrong_claims(claims, stored("before")) == []
    (sentence,) = wrong_claims(claims, stored("after", other=5.4))
    assert sentence.startswith("other against vanilla at 1e12 FLOPs")
    assert sentence.endswith("the results say: worse")
    (unknown,) = wrong_claims("<!-- claim s/ mod vanilla 2e12 better -->", tmp_path / "before")
    assert unknown.endswith("no such pair")
    assert len(wrong_claims("<!-- claim s/ mod\nvanilla 1e12 worse -->", tmp_path / "before")) == 1


@pytest.mark.parametrize(
    "comment", ["claim mod vanilla 3e13 Worse", "claim mod vanilla worse", "clam mod vanilla 3e13 worse"]
)
def test_a_claim_that_cannot_be_read_is_wrong(comment: str) -> None:
    (sentence,) = wrong_claims(f"<!-- {comment} -->It is worse.<!-- end -->")
    assert comment in sentence


def test_a_claim_on_half_a_sentence_is_wrong() -> None:
    claim = "With depth, <!-- claim confirm/ mod vanilla 3e13 equivalent -->{}<!-- end -->"
    assert wrong_claims(claim.format("They are equivalent.")) == []
    (sentence,) = wrong_claims(claim.format("they are equivalent."))
    assert "a whole sentence" in sentence


@pytest.mark.slow
def test_the_planned_cost_is_that_of_the_suites() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    assert filled(text, {"planned": TEXTS["planned"]}) == text


def test_no_number_of_a_result_is_written_by_hand() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    prose = re.sub(r"<!-- (?!end|claim)[a-z ]+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)
    prose = re.sub("<!--.*?-->", "", prose)
    prose = re.sub(r"\([^)]*\.(?:md|svg|toml)[^)]*\)|95 %|`[^`]*`|^\d\.", "", prose, flags=re.MULTILINE)
    assert not re.findall(r"\d", prose)


def rows_of_quick() -> dict[str, list[str]]:
    """The cells of each row by scheme."""
    heading, _, *lines = (line.strip("| ").split(" | ") for line in first_table("quick").splitlines())
    return {line[heading.index("scheme")]: line for line in [heading, *lines]}


@pytest.mark.parametrize("suite", ["quick", "isoflop-depth"])
def test_every_column_of_the_first_tables_of_a_page_is_explained(suite: str) -> None:
    page = (ROOT / "results" / suite / "leaderboard.md").read_text().partition("## Details")[0]
    explained = set(re.findall(r"^\| ([^|`]+) \|", COLUMNS_PAGE, flags=re.MULTILINE))
    headings = re.findall(r"^\| (group \| .*) \|\n\| --", page, flags=re.MULTILINE)
    assert headings
    assert all({*heading.split(" | ")} <= explained for heading in headings)


def pattern(name: str) -> str:
    """The columns that ``name``, as docs/columns.md has it, stands for."""
    metric = r"\w+" if name.startswith("TASK") else "|".join(METRICS)
    words = {"METRIC": f"({metric})", "TASK": r"[^:]+(:[^:]+)*", "layer_N": r"layer_\d+"}
    return re.sub("METRIC|TASK|layer_N", lambda match: words[match[0]], name)


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*/*.csv")), ids=lambda path: path.parent.name)
def test_every_column_of_a_committed_csv_file_has_a_line(path: Path) -> None:
    heads = ("Columns of several files", path.name)
    own = [COLUMNS_PAGE.partition(f"### {head}\n")[2].partition("\n##")[0] for head in heads]
    cells = re.findall(r"^\| (`.*?`) \| \S", "".join(own), flags=re.MULTILINE)
    known = "|".join(pattern(name) for cell in cells for name in re.findall("`([^`]+)`", cell))
    known = f"({known})(_low|_high)?"
    columns = path.read_text().partition("\n")[0].split(",")
    assert [column for column in columns if not re.fullmatch(known, column)] == []


def test_quick_shows_the_columns_of_the_page_for_each_scheme() -> None:
    rows = rows_of_quick()
    heading = rows.pop("scheme")
    assert {"vanilla", "mod"} <= rows.keys()
    assert all(len(row) == len(heading) for row in rows.values())
