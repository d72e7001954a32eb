"""index.html of a suite: one file that loads nothing, with the tables as tables."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from modbench.report.html.chart import chart_spec
from modbench.report.write import write_report

pytestmark = pytest.mark.figures

#: Elements that have no end tag.
_VOID = {"meta", "link", "img", "input", "br", "hr"}


class Parsed(HTMLParser):
    """Elements of a page as (tag, attributes), and the text of each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.raw: list[tuple[str, dict[str, str], str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.append((self.open[-1], self.elements[-1][1], text))
        else:
            self.words.append(text)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> str:
    write_report(folder, html=True)
    return (folder / "index.html").read_text()


@pytest.fixture(scope="module")
def many():
    """Records with all that a page can show, made once."""
    import made_up_records as fakes

    passage = {
        "texts": [" the", "\n", "</script>", "<b>", "", " a", "b", "c", "d", "e"],
        "causal": [{"layer": 1, "selected": "1000010000"}, {"layer": 3, "selected": "0000000001"}],
        "topk": [{"layer": 1, "selected": "1100000000"}, {"layer": 3, "selected": "0000000001"}],
        "experts": [],
    }
    routing = fakes.make_routing() | {"passage": passage}
    records = [
        fakes.make_record("vanilla", seed=seed, loss=4.9 + seed / 100, cost=1.0) for seed in (0, 1, 2)
    ]
    records += [
        fakes.make_record("mod", seed=seed, loss=4.86 + seed / 100, cost=0.6, routing=routing)
        for seed in (0, 1, 2)
    ]
    return [
        *records,
        fakes.make_record("token_choice", loss=4.81, cost=1.02),
        fakes.make_record("lost", status="diverged", error="=cmd() <img src=x onerror=alert(1)>"),
    ]


@pytest.fixture(scope="module")
def page(many, tmp_path_factory) -> str:
    import made_up_records as fakes

    return page_of(fakes.store(tmp_path_factory.mktemp("results") / "fake", many))


def test_the_page_is_well_formed_and_its_identifiers_are_unique(page):
    parsed = Parsed(page)
    assert parsed.open == []
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert len(names) > 10


def test_nothing_is_loaded_and_no_link_leaves_the_folder(page):
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        assert attributes.get("src", "data:image/svg+xml;base64,").startswith("data:image/svg+xml;"), tag
        assert tag != "img" or attributes["alt"]
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        if "href" in attributes:
            target = attributes["href"]
            assert tag == "a", (tag, target)
            assert target.startswith(("#", "records/", "../index.html")), target
    assert not {tag for tag, _ in parsed.elements} & {"svg", "link", "iframe", "object", "base", "image"}
    style = next(text for tag, _, text in parsed.raw if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_links_inside_the_page_lead_somewhere(page):
    parsed = Parsed(page)
    names = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    targets = {of["href"][1:] for _, of in parsed.elements if of.get("href", "").startswith("#")}
    assert targets <= names


def test_the_policy_allows_the_scripts_of_the_page_only(page):
    parsed = Parsed(page)
    (policy,) = [
        meta["content"]
        for meta in parsed.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        texts = [text for tag, of, text in parsed.raw if tag == kind and "type" not in of]
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in texts
        ]
        assert rules[f"{kind}-src"].split() == hashes
    # It must stand before what it governs.
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_a_row_is_a_line_of_a_table_with_its_number_in_full(page, many):
    (line,) = [line for line in page.splitlines() if line.startswith("<tr>") and "4.870 ±" in line]
    assert '<td class="n" data-sort="4.87">4.870 ± ' in line
    assert line.endswith("</tr>")
    for table in re.findall(r"<table.*?</table>", page.partition("<script")[0], flags=re.DOTALL):
        assert "<caption" in table
        assert '<th scope="col"' in table


def test_the_routing_of_a_passage_is_data_that_no_text_can_end(page):
    parsed = Parsed(page)
    texts = {of.get("id"): text for tag, of, text in parsed.raw if of.get("type") == "application/json"}
    (passage,) = json.loads(texts["passage-data"])
    assert passage["texts"][2] == "</script>"
    skipped = [-1] * 9
    assert passage["layers"] == [None, [0, *skipped[:4], 0, *skipped[:4]], None, [*skipped, 0]]
    assert "<" not in texts["passage-data"]
    chart = json.loads(texts["chart-data"])
    vertical, horizontal, rows = (param["bind"]["options"] for param in chart["params"])
    assert vertical[0] == "validation loss (nats/token)"
    assert "forward flops per token realised (FLOP/token)" in horizontal
    assert rows == ["1: 1e+12 training FLOPs"]
    (points,) = chart["datasets"].values() if "datasets" in chart else [chart["data"]["values"]]
    assert {(point["name"], point["ranked"]) for point in points} == {
        *(("vanilla", True), ("mod", True), ("token_choice", True), ("lost", False)),
    }


def test_a_size_of_a_scheme_that_leaks_is_pale_in_the_chart_of_curves():
    rows = pd.DataFrame(
        {
            "comparison": [1, 1],
            "label": ["vanilla", "leaky"],
            "shape": ["w32", "w32"],
            "budget": [1e12, 1e12],
            "heldout_loss": [5.0, 4.0],
            "parameters": ["1", "2"],
            "on_curve": [True, True],
            "unranked": [pd.NA, "failed audit probe 1"],
        }
    )
    spec = chart_spec(rows, {})
    assert spec is not None
    (points,) = spec["datasets"].values() if "datasets" in spec else [spec["data"]["values"]]
    assert [point["ranked"] for point in points] == [True, False]


def test_the_same_records_give_the_same_bytes_in_any_folder(page, many, tmp_path):
    import made_up_records as fakes

    folder = fakes.store(tmp_path / "elsewhere" / "fake", many)
    assert page_of(folder) == page
    assert str(tmp_path) not in page


def test_what_a_record_says_is_text_on_the_page(page):
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    parsed = Parsed(page)
    assert any("=cmd() <img src=x onerror=alert(1)>" in words for words in parsed.words)
