"""index.html of suites that lack something, and the index over suites."""

import re

import pytest

from modbench.cli.main import main
from modbench.report.html.index import table_html
from modbench.report.html.page import _html
from modbench.report.markdown import Page
from modbench.report.table import Number, Table
from modbench.report.write import write_report

pytestmark = pytest.mark.figures


def page_of(folder, **options) -> str:
    write_report(folder, html=True, **options)
    return (folder / "index.html").read_text()


def test_runs_that_no_suite_names_are_shown_with_a_notice(tmp_path, fakes):
    folder = fakes.store(tmp_path / "fake", [fakes.make_record("mod"), fakes.make_record("vanilla")])
    file = folder / "records" / "0000000000000000.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"kind":"suite"' not in line))
    page = page_of(folder)
    assert "No record of a suite names these runs" in page
    assert "<h1>fake</h1>" in page


def test_a_page_that_is_there_is_kept_up_to_date(tmp_path, fakes, six):
    folder = fakes.store(tmp_path / "fake", six[:2])
    write_report(folder)
    assert not (folder / "index.html").exists()
    assert "mode_staged" not in page_of(folder)
    fakes.store(folder, six)
    paths = write_report(folder).paths
    assert folder / "index.html" in paths
    assert "mode_staged" in (folder / "index.html").read_text()


def test_the_index_lists_suites_with_their_facts(tmp_path, fakes, six):
    fakes.store(tmp_path / "plain", [fakes.make_record("mod")])
    page_of(fakes.store(tmp_path / "fake", six))
    index = (tmp_path / "index.html").read_text()
    (row,) = [line for line in index.splitlines() if 'href="fake/index.html"' in line]
    for fact in (
        ">6<",
        "1.00 TFLOP",
        "Imaginary CPU",
        "2026-01-01",
    ):
        assert fact in row
    assert "<code>modbench report plain --html</code>" in index
    assert index.index("Content-Security-Policy") < index.index("<style>")


@pytest.mark.parametrize("facts", ["{", "5", '{"name": 5}', "\xff[" + "[" * 9999])
def test_a_damaged_page_of_another_suite_is_named(tmp_path, fakes, capsys, facts):
    page_of(fakes.store(tmp_path / "other", [fakes.make_record("mod")]))
    page = tmp_path / "other" / "index.html"
    damaged = re.sub('(id="facts">).*?<', rf"\g<1>{facts}<", page.read_text())
    page.write_text(damaged, encoding="latin-1", errors="replace")
    fakes.store(tmp_path / "fake", [fakes.make_record("mod")])
    assert main(["report", "fake", "--results", str(tmp_path), "--html"]) == 2
    assert "other/index.html: its facts are damaged" in capsys.readouterr().err


def test_the_option_of_the_command_writes_page_and_index(tmp_path, fakes, capsys):
    folder = fakes.store(tmp_path / "fake", [fakes.make_record("mod")])
    assert main(["report", "fake", "--results", str(tmp_path), "--html"]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths[-2:] == [str(folder / "index.html"), str(tmp_path / "index.html")]


def test_a_page_of_another_program_is_left_alone(tmp_path, fakes, six):
    (tmp_path / "index.html").write_text("mine")
    said: list[str] = []
    page_of(fakes.store(tmp_path / "fake", six), say=said.append)
    assert (tmp_path / "index.html").read_text() == "mine"
    assert "modbench did not write it" in said[0]


NAMES = ["<script>alert(1)</script>", "=cmd()", '"><b x="', "a & b", "[x](https://e.org)"]


def test_names_are_inert_in_cells_prose_and_csv():
    table = Table(["scheme", "loss"], [[name, 1.5] for name in NAMES])
    html = str(table_html(table, NAMES[0]))
    assert "<script" not in html
    assert "<b " not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3  # label, caption, cell
    for name in NAMES:
        assert not re.search(r"<(?!/?p>)", _html(Page([name]), "", {})), name


def test_cells_are_sorted_by_their_number_in_full():
    cells = [Number("4.9 ± 0.1", 4.87654321), 3, 2.5, None, "-"]
    html = str(table_html(Table(["name", *map(str, range(len(cells)))], [["x", *cells]]), ""))
    assert re.findall(r'data-sort="([^"]*)"', html) == ["4.87654321", "3", "2.5", "", ""]


def test_a_page_of_500_rows_is_small(tmp_path, fakes):
    # Without learning curves, whose figure takes most of the time and is too large anyway.
    records = [
        fakes.make_record(f"mod:{n}", router="mod", options={"every": n}, loss=4 + n / 1e4, curve=[])
        for n in range(1, 501)
    ]
    page = page_of(fakes.store(tmp_path / "fake", records))
    assert page.count('<th scope="row">mod:') >= 500
    assert len(page.encode()) < 2_500_000  # of which 0.9 MB are those that draw charts


def test_check_covers_the_page_and_the_index(tmp_path, fakes, capsys):
    folder = fakes.store(tmp_path / "fake", [fakes.make_record("mod")])
    assert main(["report", "fake", "--results", str(tmp_path), "--html"]) == 0
    assert main(["report", "--results", str(tmp_path), "--check"]) == 0
    for path in (folder / "index.html", tmp_path / "index.html"):
        before = path.read_text()
        path.write_text(before.replace("</html>", "</html >"))
        capsys.readouterr()
        assert main(["report", "--results", str(tmp_path), "--check"]) == 1
        assert f"{path} differs from the records at byte" in capsys.readouterr().out
        path.write_text(before)
