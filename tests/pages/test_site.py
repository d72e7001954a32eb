"""The site of docs/: what its build (``nox -s docs``) would not report."""

import json
import re
import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import modbench

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = (DOCS / "api.rst").read_text()
PYTHON = re.compile(r"^\.\. auto\w+:: (modbench[\w.]*)", re.MULTILINE)


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "conf.py"))


def test_every_page_is_in_one_toctree() -> None:
    entries = Counter(re.findall(r"^   (\w+)$", (DOCS / "index.rst").read_text(), re.MULTILINE))
    pages = {page.stem for page in (*DOCS.glob("*.md"), *DOCS.glob("*.rst"))} - {"index"}
    assert entries == Counter(pages)


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    described = set(PYTHON.findall(API))
    assert {f"modbench.{name}" for name in modbench.__all__} <= described


def in_site(conf: dict[str, Any], text: str, repository: str) -> str:
    source = [text]
    app = SimpleNamespace(config=SimpleNamespace(repository=repository))
    conf["link_to_repository"](app, "page", source)
    return source[0]


def test_links_out_of_docs_lead_to_the_repository_or_are_text(conf: dict[str, Any]) -> None:
    text = "[a `b`](../README.md#x) [c](d.md) ![e](../results/f.png)"
    shown = in_site(conf, text, "https://host/o/r/blob/main")
    assert shown == ("[a `b`](https://host/o/r/blob/main/README.md#x) [c](d.md) ![e](../results/f.png)")
    assert in_site(conf, text, "") == "a `b` [c](d.md) ![e](../results/f.png)"


def test_pages_of_suites_are_listed_and_copied_with_what_they_link_to(
    conf: dict[str, Any], tmp_path: Path
) -> None:
    results, site = tmp_path / "results", tmp_path / "site"
    (results / "quick" / "records").mkdir(parents=True)
    (results / "quick" / "records" / "1.jsonl").write_text("{}")
    (results / "quick" / "records" / "2.jsonl").write_text("{}")
    links = '<a href="records/1.jsonl"></a><a href="#a"></a><a href="../../secret"></a>'
    (results / "quick" / "index.html").write_text(links)
    (results / "index.html").write_text('<a href="quick/index.html"></a>')
    (tmp_path / "secret").write_text("not of the results")
    for function in ("copy_suite_pages", "list_suite_pages"):
        conf[function].__globals__.update(ROOT=tmp_path, RESULTS=results)
    conf["copy_suite_pages"](SimpleNamespace(outdir=str(site)), None)
    copied = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    page = "results/quick/index.html"
    assert copied == {"results/index.html", page, "results/quick/records/1.jsonl"}
    source = [""]
    conf["list_suite_pages"](None, "suite_pages", source)
    assert source == [f"- `quick <{page}>`__\n"]


def test_the_notebook_is_shown_with_what_it_draws_and_prints(
    conf: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["from matplotlib import pyplot\n", "pyplot.plot([1, 2]);"]},
        {"cell_type": "markdown", "source": ["Some words."]},
        {"cell_type": "code", "source": ["print('said by it')"]},
    ]
    (tmp_path / "examples").mkdir()
    path = tmp_path / "examples" / "figures_of_your_own.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    monkeypatch.setitem(conf["show_notebook"].__globals__, "ROOT", tmp_path)
    source = [""]
    conf["show_notebook"](SimpleNamespace(outdir=str(tmp_path)), "notebook", source)
    assert "Some words." in source[0]
    assert "   said by it" in source[0]
    (figure,) = (tmp_path / "_images").iterdir()
    assert f"_images/{figure.name}" in source[0]
