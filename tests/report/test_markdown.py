from collections.abc import Collection, Iterable

import pytest
from timings_made_up import times_of

from modbench.report.leaderboard import leaderboard_page
from modbench.report.suite import Suite, suite_of
from modbench.report.table import Table, escaped, si


def _text(board: Suite, drawn: Collection[str] = ()) -> str:
    return leaderboard_page(board, drawn).to_markdown()


def _tables(parts: Iterable[str | Table]) -> list[Table]:
    return [part for part in parts if isinstance(part, Table)]


def _cells(board: Suite, label: str) -> dict[str, object]:
    """The cells of the row ``label`` in all tables of the page of ``board``, by heading."""
    cells: dict[str, object] = {}
    for table in _tables(leaderboard_page(board).parts):
        for row in (row for row in table.rows if label in row[:2]):
            cells |= dict(zip(table.headings, row, strict=True))
    return cells


def test_the_row_shows_its_figures_in_the_units_of_its_headings(fakes):
    record = fakes.make_record("mod", loss=4.9)
    cells = _cells(suite_of([record], times=times_of(record)), "mod")
    assert "group" not in cells
    assert cells["validation loss (nats/token)"] == "4.900"
    assert cells["realised forward FLOP/token"] == "3.03 M"
    assert cells["nominal forward FLOP/token"] == "3.000 M"
    assert cells["training tokens"] == "110,592"
    assert cells["training FLOP spent"] == "995.3 G"
    assert cells["steps"] == "54"
    assert cells["training step (ms), median ± IQR"] == "100.0 ± 6.0"
    assert cells["peak memory (MB)"] == "80.0"
    assert cells["KV cache, share of dense"] == "0.562"
    assert cells["KV cache (B/token)"] == "2,250"
    assert cells["parameters, active / all"] == "1.00 M / 1.20 M"
    assert cells["audit"] == "passed 5"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        ("a\nb\nc", "a b c"),
        ("../../etc", "../../etc"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("![x](y)", r"!\[x\](y)"),
        ("`a` *b* __c__ $d$", r"\`a\` \*b\* \_\_c\_\_ \$d\$"),
        ("token_choice", "token_choice"),
        ("back\\slash|", r"back\\slash\|"),
        ("a\u202eb", "a\ufffdb"),
        ("&lt;", "&amp;lt;"),
        ("at https://example.org/a", r"at https\://example.org/a"),
        ("www.example.org and FTP://a", r"www\.example.org and FTP\://a"),
        ("a: //b, wwww.c", "a: //b, wwww.c"),
    ],
)
def test_foreign_text_stays_text(fakes, text, shown):
    assert escaped(text) == shown
    page = _text(suite_of([fakes.make_record(status="failed", error=text)]))
    assert f"seed 0 failed: {shown}\n" in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.000"),
        (999, "999.0"),
        (999_499, "999.5 k"),
        (999_960, "1.000 M"),
        (1.5e12, "1.500 T"),
        (999.96e18, "1.000 Z"),
    ],
)
def test_an_amount_has_four_digits_and_the_prefix_of_what_it_rounds_to(value, shown):
    assert si(value) == shown


def test_a_run_that_ends_above_its_unigram_loss_is_marked(fakes):
    board = suite_of([fakes.make_record("bad", loss=6.5), fakes.make_record("good")])
    assert (_cells(board, "good")["group"], _cells(board, "bad")["group"]) == ("-", "†")
    assert "- **bad**: validation loss is above the unigram loss\n" in _text(board)
    assert "†" not in _text(suite_of([fakes.make_record("good")]))


@pytest.mark.parametrize(
    ("stable", "loaded", "marks"),
    [
        (True, False, ""),
        (False, False, " (unstable)"),
        (True, True, " (loaded)"),
        (False, True, " (unstable, loaded)"),
    ],
)
def test_a_doubtful_time_is_marked(fakes, stable, loaded, marks):
    record, seconds = fakes.make_record("mod"), (0.097, 0.097, 0.103, 0.103)
    loops = 1 if stable else 0.001  # a sample is shorter than 1 ms
    times = times_of(record, seconds=tuple(loops * one for one in seconds), overloaded=loaded)
    board = suite_of([record], times=times)
    shown = "100.0 ± 6.0" if stable else "0.1 ± 0.0"
    assert _cells(board, "mod")["training step (ms), median ± IQR"] == f"{shown}{marks}"
