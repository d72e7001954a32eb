"""docs/suites.md and docs/routers.md say what the code does, and the suites on the page can be run."""

import re
import tomllib
from dataclasses import dataclass

import pytest
from pages.keys import ROOT, TABLES, TEXTS, filled, key_table, own_meanings

from modbench.errors import UserError
from modbench.sweep.refuse import refuse_more_passes
from modbench.sweep.rows import resolve
from modbench.sweep.suite import Suite, parse_suite
from modbench.sweep.tables import SuiteFile
from modbench.sweep.wanted import expand

DOCS = ROOT / "docs"
KEYS = (DOCS / "suite_keys.md").read_text()


def suites_of(page: str) -> list[str]:
    return re.findall(r"```toml\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


PAGE = (DOCS / "suites.md").read_text() + (DOCS / "first_isoflop.md").read_text()
SUITES = suites_of("suites.md") + suites_of("first_isoflop.md")
ISOFLOP = [text for text in suites_of("isoflop.md") if "[suite]" in text]
#: Training tokens of the embedded corpus with a vocabulary of 512.
TOKENS = 6_898_153
STATED = [int(number) for number in re.findall(r"(?:suite has|make) (\d+) runs", PAGE)]


def suite(text: str) -> Suite:
    return parse_suite(tomllib.loads(text), "of the page")


@pytest.mark.parametrize("name", ["suite_keys.md", "routers.md", "columns.md"])
def test_the_tables_of_the_page_are_those_of_the_code(name: str) -> None:
    page = (DOCS / name).read_text()
    assert page == filled(page, TEXTS), "run python tools/pages keys"


def test_the_page_has_every_table_of_a_suite_file() -> None:
    known = set(SuiteFile.__dataclass_fields__)
    assert known == {*TABLES, "shapes"}
    headings = set(re.findall(r"^## \[+(\w+)\]+$", KEYS, flags=re.MULTILINE))
    assert headings == known
    assert all(f"<!-- {name} -->\n| key |" in KEYS for name in TABLES)


def test_the_smallest_suite_has_only_what_is_required() -> None:
    content = tomllib.loads(SUITES[0])
    assert len(expand(resolve(suite(SUITES[0])))) == 1
    for table in list(content):
        with pytest.raises(UserError, match="needs"):
            parse_suite({name: value for name, value in content.items() if name != table}, "smallest")


@pytest.mark.parametrize(("number", "stated"), list(enumerate(STATED, start=1)))
def test_a_worked_suite_has_the_stated_number_of_runs(number: int, stated: int) -> None:
    assert len(expand(resolve(suite(SUITES[number])))) == stated


def test_there_are_three_worked_suites() -> None:
    assert len(SUITES) == 4
    assert len(STATED) == 3


@pytest.mark.parametrize("text", [SUITES[3], *ISOFLOP])
def test_isoflop_suites_read_the_text_as_often_as_is_allowed(text: str) -> None:
    rows = resolve(suite(text))
    assert rows.suite.isoflop is not None
    assert rows.suite.data.vocabulary == 512
    refuse_more_passes(rows, {scheme.name for scheme in rows.suite.schemes}, TOKENS)


def test_two_seeds_and_two_shapes_make_the_runs_of_the_first_suite() -> None:
    wanted = expand(resolve(suite(SUITES[1])))
    assert {one.run.seed for one in wanted} == {0, 1}
    assert {one.run.model.width for one in wanted} == {96, 160}
    assert "mod/large" in {one.label for one in wanted}


@dataclass(frozen=True, kw_only=True)
class Keys:
    first: int = 1


def test_comments_are_read_next_to_a_field_or_above_it() -> None:
    lines = ("class A:", "    b: int = 1  #: one", "    #: two", "    #: lines", "    c: str = '#: no'")
    assert own_meanings("\n".join((*lines, "    d: int = 0\n"))) == {"b": "one", "c": "two lines"}


def test_a_key_without_a_comment_is_an_error() -> None:
    with pytest.raises(KeyError, match="first"):
        list(key_table(Keys))
