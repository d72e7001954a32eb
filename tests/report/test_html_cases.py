"""index.html of suites that lack something, and the index over suites."""

import json
import re

import pytest
from isoflop_made_up import records as sweep_records

from modbench.cli.main import main
from modbench.report.html.blocks import Blocks
from modbench.report.html.figures import Glyphs, inlined
from modbench.report.html.prose import block, inline
from modbench.report.page import write_report
from modbench.report.sections import Picture
from modbench.report.table import Markdown, Number, Table


def page_of(folder, **options) -> str:
    write_report(folder, html=True, **options)
    return (folder / "index.html").read_text()


def notice(page: str) -> str:
    found = re.search(r'<div class="notice".*?</div>', page, flags=re.DOTALL)
    return found[0] if found else ""


def test_one_seed_and_no_times_are_said_where_they_are_missed(tmp_path, fakes, six):
    page = page_of(fakes.store(tmp_path / "fake", six))
    assert "token_choice, 4.8100 nats/token <span>not tested: no run was repeated</span>" in page
    assert "One seed gives no interval" in page
    assert "<code>modbench time fake</code> measures them" in page
    assert notice(page) == ""


def test_a_row_alone_has_no_chart(tmp_path, fakes):
    page = page_of(fakes.store(tmp_path / "fake", [fakes.make_record("mod")]))
    assert "No chart: it needs two finished rows" in page
    assert 'id="chart-data"' not in page


def test_a_metric_that_no_record_has_ranks_nothing_and_is_named(tmp_path, fakes, six):
    folder = fakes.store(tmp_path / "fake", [fakes.make_record("mod", metrics={"modbench_cloze": None})])
    page = page_of(folder, rank_by="modbench_cloze")
    assert "modbench_cloze was not measured" in page
    assert "No row could be ranked." in page


def test_runs_that_no_suite_names_are_shown_with_a_notice(tmp_path, fakes):
    folder = fakes.store(tmp_path / "fake", [fakes.make_record("mod"), fakes.make_record("vanilla")])
    file = folder / "records" / "0000000000000000.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"kind":"suite"' not in line))
    page = page_of(folder)
    assert "No record of a suite names these runs" in notice(page)
    assert "<h1>fake</h1>" in page
    assert "modbench run fake" not in page
    assert "modbench verify fake/mod#0 --results FOLDER" in page


def test_damaged_lines_are_named_and_left_out(tmp_path, fakes, six):
    folder = fakes.store(tmp_path / "fake", six)
    newer = fakes.altered(fakes.make_record("late").record, lambda fields: fields.update(schema=99))
    (folder / "records" / "a.jsonl").write_text(f'{newer}\n{{"cut": 1}}\n<script>\n')
    said: list[str] = []
    page = page_of(folder, say=said.append)
    assert len(said) == 3
    assert "records/a.jsonl, line 1: no valid record: schema is 99" in notice(page)
    assert "records/a.jsonl, line 3: no valid record: it is not JSON" in notice(page)
    assert str(tmp_path) not in page
    assert "token_choice" in page


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
        "token_choice, 4.8100 nats/token; not tested",
        "1.00 TFLOP",
        "Imaginary CPU, 2 cores",
        "2026-01-01",
    ):
        assert fact in row
    assert "<code>modbench report plain --html</code>" in index
    assert index.index("Content-Security-Policy") < index.index("<style>")


@pytest.mark.parametrize("summary", ["{", "5", '{"name": 5}', "\xff[" + "[" * 9999])
def test_a_damaged_page_of_another_suite_is_named(tmp_path, fakes, capsys, summary):
    page_of(fakes.store(tmp_path / "other", [fakes.make_record("mod")]))
    page = tmp_path / "other" / "index.html"
    damaged = re.sub('(id="summary">).*?<', rf"\g<1>{summary}<", page.read_text())
    page.write_text(damaged, encoding="latin-1", errors="replace")
    fakes.store(tmp_path / "fake", [fakes.make_record("mod")])
    assert main(["report", "fake", "--results", str(tmp_path), "--html"]) == 2
    assert "other/index.html: its summary is damaged" in capsys.readouterr().err


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


def test_isoflop_curves_have_schemes_to_hide_and_optima_lead_to_runs(tmp_path, fakes, make):
    page = page_of(fakes.store(tmp_path / "fake", sweep_records(make)))
    figure = re.search(r'<figure[^>]*data-schemes="([^"]*)".*?</figure>', page, flags=re.DOTALL)
    assert json.loads(figure[1].replace("&#34;", '"')) == ["mod", "vanilla"]
    assert 'class="s0"' in figure[0]
    assert 'class="s1"' in figure[0]
    table = re.search(r"<caption>Schemes at their optima, 3e\+12.*?</table>", page, flags=re.DOTALL)[0]
    first, last = re.search(r'<a href="#run-(\d+)" data-last="(\d+)">mod</a>', table).groups()
    lines = dict(re.findall(r'<tr id="run-(\d+)">(.*)', page))
    names = [
        re.search(r'<th scope="row">(.*?)</th>', lines[str(n)])[1]
        for n in range(int(first), int(last) + 1)
    ]
    assert len(names) > 5
    assert all(name.startswith("mod/w") and "@3e12" in name for name in names)
    assert f"<code>modbench run fake.toml --only {names[0]}</code>" in lines[first]


def test_a_single_size_says_why_there_is_no_optimum(tmp_path, fakes, make):
    page = page_of(fakes.store(tmp_path / "fake", sweep_records(make, widths=(64,))))
    assert "too-few" in page


NAMES = ["<script>alert(1)</script>", "=cmd()", '"><b x="', "a & b", "[x](https://e.org)"]


def test_names_are_inert_in_cells_prose_and_csv():
    table = Table(["scheme", "loss"], [[name, 1.5] for name in NAMES], runs=NAMES)
    blocks = Blocks({}, dict.fromkeys(NAMES, (0, 1)), ())
    from modbench.report.html.template import _environment

    parts = _environment().get_template("parts.html.j2").module
    html = str(parts.table(blocks.table(table, NAMES[0])))
    assert "<script" not in html
    assert "<b " not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3  # label, caption, cell
    assert "'=cmd()" in table.to_csv()
    for name in NAMES:
        for rendered in (str(block(name)), str(inline(name))):
            assert not re.search(r"<(?!/?p>)", rendered), rendered


def test_cells_are_sorted_by_their_number_in_full():
    cells = [
        "1.62 M",
        Number("4.9 ± 0.1", 4.87654321),
        3,
        2.5,
        None,
        "12 (3 to 4)",
        "at least 1",
        "1,234",
    ]
    table = Table(["name", *map(str, range(len(cells)))], [["x", *cells], ["y", *cells[1:], "-"]])
    row = Blocks({}, {}, ()).table(table, "").rows[0]
    shown = [cell.sort for cell in row]
    assert shown == [None, "1620000", "4.87654321", "3", "2.5", "", "12", "", "1234"]
    markdown = Blocks({}, {}, ()).table(Table(["a"], [[Markdown("*b*")]]), "").rows[0][0].text
    assert markdown == "<em>b</em>"


SVG = b"""<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"
 width="72pt" height="72pt" viewBox="0 0 72 72"><metadata>x</metadata>
 <defs><style type="text/css">*{stroke-linejoin: round}</style></defs>
 <g id="figure_1"><g id="scheme-3-0-1"><path d="M 1.23456 2
L 3.00001 4" style="fill: none; stroke: #e6e6e6" clip-path="url(#pabc)"/></g>
 <g style="fill: #262626" transform="translate(1.25 2.75) scale(0.1 -0.1)">
 <defs><path id="DejaVuSans-15" d="M 1228 531 L 3431 531 z" transform="scale(0.015625)"/></defs>
 <use xlink:href="#DejaVuSans-15" transform="translate(63.625 0)"/></g></g>
 <defs><clipPath id="pabc"><rect x="60.922818" y="17" width="1" height="1"/></clipPath></defs></svg>"""


def test_figures_have_no_styles_and_names_of_their_own():
    glyphs = Glyphs()
    first, second = (inlined(SVG, "a < b", f"f{n}-", glyphs) for n in (1, 2))
    svg = str(first.svg)
    assert "style" not in svg
    assert "metadata" not in svg
    assert first.schemes == (3,)
    assert first.width == 96
    assert (
        '<g class="s3"><path d="M1.2 2L3 4" fill="none" stroke="#e6e6e6" clip-path="url(#f1-0)"/>' in svg
    )
    assert '<clipPath id="f1-0"><rect x="60.9" y="17" width="1" height="1"/>' in svg
    assert '<use href="#g0" x="64"/>' in svg
    assert '<title id="f1-title">a &lt; b</title>' in svg
    assert 'id="f2-0"' in second.svg
    assert str(glyphs.definitions()).count("<path") == 1


def test_a_figure_that_is_too_large_is_a_link():
    lines = b"".join(b'<path d="M %d.5 2"/>' % n for n in range(20_000))
    drawings = {"a.svg": SVG.replace(b"<metadata>x</metadata>", lines), "b.svg": SVG}
    blocks = Blocks(drawings, {}, ())
    large, small = (blocks.figure(Picture("a b", f"{name}.svg"), "")[0] for name in "ab")
    assert large.drawing is None
    assert large.file == "a.svg"
    assert small.drawing is not None


def test_a_page_of_500_rows_is_small(tmp_path, fakes):
    # Without learning curves, whose figure takes most of the time and is too large anyway.
    records = [
        fakes.make_record(f"mod:{n}", router="mod", options={"every": n}, loss=4 + n / 1e4, curve=[])
        for n in range(1, 501)
    ]
    page = page_of(fakes.store(tmp_path / "fake", records))
    assert page.count('<tr id="run-') == 500
    assert len(page.encode()) < 1_500_000


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


def test_commands_on_the_page_of_a_users_own_suite_and_plugin_can_be_typed(tmp_path, fakes):
    folder = fakes.store(tmp_path / "fake", [fakes.make_record("mine", plugin_sha256="ab" * 32)])
    page = page_of(folder)
    assert "modbench run fake.toml --only mine --seeds 0 --plugin FILE.py" in page
    assert "modbench verify fake/mine#0 --results FOLDER --plugin FILE.py" in page
