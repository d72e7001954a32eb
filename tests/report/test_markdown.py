import re
from collections.abc import Collection, Iterable

import pytest
from timings_made_up import times_of

from modbench.report.captions import CAPTIONS
from modbench.report.leaderboard.board import Leaderboard
from modbench.report.leaderboard.columns import FIRST
from modbench.report.leaderboard.metric_cells import si
from modbench.report.leaderboard.page import leaderboard_page
from modbench.report.sections import Heading, Part
from modbench.report.table import Table, escaped


def _text(board: Leaderboard, drawn: Collection[str] = ()) -> str:
    return leaderboard_page(board, drawn).to_markdown()


def _tables(parts: Iterable[Part]) -> list[Table]:
    return [part for part in parts if isinstance(part, Table)]


def _cells(board: Leaderboard, label: str) -> dict[str, object]:
    """The cells of the row ``label`` in all tables of the page of ``board``, by heading."""
    cells: dict[str, object] = {}
    for table in _tables(leaderboard_page(board).parts):
        for row in (row for row in table.rows if label in row[:2]):
            cells |= dict(zip(table.headings, row, strict=True))
    return cells


def test_the_row_shows_its_figures_in_the_units_of_its_headings(fakes):
    record = fakes.make_record("mod", loss=4.9)
    cells = _cells(Leaderboard.of([record], times=times_of(record)), "mod")
    assert "group" not in cells
    assert cells["held-out loss (nats/token)"] == "4.9000"
    assert cells["cloze accuracy (untrained, chance)"] == "0.400 (0.260, 0.250)"
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


def test_several_seeds_show_half_an_interval_and_how_groups_came(fakes):
    records = [
        fakes.make_record("mod", seed=seed, loss=loss) for seed, loss in enumerate((1.0, 2.0, 3.0))
    ]
    board = Leaderboard.of(records)
    page = _text(board)
    assert _cells(board, "mod")["held-out loss (nats/token)"] == "2.0000 ± 2.4841"
    assert "One seed gives no interval" not in page
    assert "group" not in _cells(board, "mod")  # a row alone is the best of nothing
    assert "No difference to a dense model: no row has the router `vanilla`." in page


def test_notes_say_what_the_table_was_made_from(six):
    page = _text(Leaderboard.of(six))
    for said in (
        "# Suite fake, version 1",
        "convention `model`",
        "1000000000000, convention model",
        "sha256 " + "ab" * 32,
        "cpu Imaginary CPU, cores 2, threads 2, torch 2.13.0",
        "modbench 0.1.0, commit " + "0" * 40,
        "Seeds: 0.",
        "Unigram loss: 6.2500 nats/token",
    ):
        assert said in page


def test_what_is_not_ranked_says_so_with_its_reason_under_the_table(fakes):
    board = Leaderboard.of(
        [
            fakes.make_record("fair"),
            fakes.make_record("leaky", loss=1.5, failed_probes=(1,)),
            fakes.make_record("lost", status="diverged"),
        ]
    )
    groups = {label: _cells(board, label)["group"] for label in ("fair", "leaky", "lost")}
    assert groups == {"fair": "-", "leaky": "not ranked †", "lost": "not ranked †"}
    assert _cells(board, "lost")["held-out loss (nats/token)"] == "-"
    below = _text(board).split("† Not ranked, or to be read with care:")[1]
    assert "- **leaky**: failed audit probe 1 causal (moved by 0.7)\n" in below
    assert "- **lost**: seed 0 diverged: the loss is not finite at step 7\n" in below


def test_the_page_names_every_code_that_made_a_row(fakes):
    old = {"version": "0.0.9", "commit": "f" * 40, "dirty": True}
    page = _text(Leaderboard.of([fakes.make_record("new"), fakes.make_record("old", code=old)]))
    assert f"- Code: modbench 0.1.0, commit {'0' * 40}.\n" in page
    assert f"- Code: modbench 0.0.9, commit {'f' * 40} with local changes.\n" in page


def test_the_unigram_loss_is_told_though_the_first_row_broke_off_before_it_was_taken(fakes):
    lost, leaky = fakes.make_record("a", status="diverged"), fakes.make_record("b", failed_probes=(1,))
    assert "Unigram loss: 6.2500 nats/token" in _text(Leaderboard.of([lost, leaky]))


@pytest.mark.parametrize(
    ("rank_by", "said"),
    [
        ("modbench_cloze", "Ordered by modbench_cloze. One seed gives no interval"),
        ("forward_flops_per_token", "Ordered by forward_flops_per_token, which is exact"),
    ],
)
def test_a_page_that_another_metric_ranks_says_which(six, rank_by, said):
    page = _text(Leaderboard.of(six, rank_by=rank_by))
    assert said in page
    assert ("One seed" in page) == ("One seed" in said)


def test_a_page_that_is_ranked_by_what_no_column_has_gets_one(fakes):
    figures = {"forward_flops_per_token_full": 12345}
    records = [fakes.make_record(label, metrics=figures) for label in ("mod", "vanilla")]
    heading = "forward_flops_per_token_full (FLOP/token)"
    board = Leaderboard.of(records, rank_by="forward_flops_per_token_full")
    assert _cells(board, "mod")[heading] == "12345"
    assert heading not in _cells(Leaderboard.of(records), "mod")


def test_a_page_without_a_ranked_row_says_so(fakes):
    assert "No row could be ranked." in _text(Leaderboard.of([fakes.make_record(status="oom")]))


def test_rows_have_the_times_of_their_scheme_and_a_note_says_where_they_are_from(fakes):
    a, b = fakes.make_record("a"), fakes.make_record("b", options={"every": 2})
    board = Leaderboard.of([a, b], times=times_of(a))
    times = {label: _cells(board, label)["training step (ms), median ± IQR"] for label in "ab"}
    assert times == {"a": "100.0 ± 6.0", "b": "-"}
    said = "- Times and memory: of the newest session of `modbench time`; timings.md has its machine.\n"
    assert said in _text(board)
    assert said not in _text(Leaderboard.of([b], times=times_of(a)))


def test_the_page_leads_with_its_columns_and_explains_them_by_their_headings(fakes):
    labels = ("mod", "vanilla")
    records = [fakes.make_record(label, seed=seed) for label in labels for seed in (0, 1, 2)]
    page = leaderboard_page(Leaderboard.of(records))
    assert page.parts[0] == Heading("Suite fake, version 1", 1)
    assert page.parts[1] == (
        "2 schemes at equal compute: each is trained with 1.00 TFLOP on pypi-en-v1, 3 seeds."
    )
    first, meanings, more, _, further_meanings = _tables(page.parts)
    assert page.parts[2] == first
    assert first.headings == [column.heading for column in FIRST]
    assert [row[0] for row in meanings.rows] == first.headings
    assert ["scheme", *(row[0] for row in further_meanings.rows)] == more.headings


def test_each_figure_that_was_drawn_is_shown_under_a_sentence(fakes):
    drawn = {"loss_vs_training_flops.png", "loss_vs_training_flops.svg", "routing.svg"}
    page = _text(Leaderboard.of([fakes.make_record("mod")]), drawn)
    pictures = re.findall(r"^([A-Z].*\.)\n\n!\[[^]]+\]\((\w+)\.svg\)$", page, flags=re.MULTILINE)
    assert pictures == [(CAPTIONS[name], name) for name in ("loss_vs_training_flops", "routing")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a|b", r"a\|b"),
        ("a\nb\r\nc", "a b c"),
        ("../../etc", "../../etc"),
        ("[x](javascript:1)", r"\[x\](javascript:1)"),
        ("![x](y)", r"!\[x\](y)"),
        ("`a` *b* __c__ $d$", r"\`a\` \*b\* \_\_c\_\_ \$d\$"),
        ("token_choice", "token_choice"),
        ("back\\slash|", r"back\\slash\|"),
        ("a\u202eb\x00", "a\ufffdb\ufffd"),
        ("&lt;", "&amp;lt;"),
        ("at https://example.org/a", r"at https\://example.org/a"),
        ("www.example.org and FTP://a", r"www\.example.org and FTP\://a"),
        ("a: //b, wwww.c", "a: //b, wwww.c"),
    ],
)
def test_foreign_text_stays_text(fakes, text, shown):
    assert escaped(text) == shown
    page = _text(Leaderboard.of([fakes.make_record(status="failed", error=text)]))
    assert f"seed 0 failed: {shown}\n" in page
    assert "<script" not in page


def test_an_endless_error_is_cut(fakes):
    page = _text(Leaderboard.of([fakes.make_record(status="failed", error="x" * 10_000)]))
    assert max(len(line) for line in page.splitlines()) < 1_000


def test_what_rounds_to_nothing_has_no_sign(fakes):
    board = Leaderboard.of([fakes.make_record("mod", metrics={"leak": -1e-6})])
    assert _cells(board, "mod")["leak (nats/token)"] == "0.0000"


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


def test_what_a_row_was_trained_with_and_others_were_not_is_told(fakes):
    def page(*rates):
        return _text(
            Leaderboard.of(
                [
                    fakes.make_record(label, train={"learning_rate": rate, "budget": 10**n})
                    for n, (label, rate) in enumerate(zip("abc", rates, strict=True), start=9)
                ]
            )
        )

    assert "Settings differ" not in page(0.1, 0.1, 0.1)
    assert "- Settings differ: learning_rate; see leaderboard.csv.\n" in page(0.1, 0.2, 0.1)


def test_a_limit_on_downstream_items_that_differs_is_told(fakes):
    records = [fakes.make_record(f"{n}", measure={"downstream_limit": n}) for n in (5, None)]
    page = _text(Leaderboard.of(records))
    assert "- Settings differ: downstream_limit; see leaderboard.csv.\n" in page


def test_a_column_in_which_no_row_has_a_value_is_left_out(fakes):
    cloze = (f"modbench_cloze{part}" for part in ("", "_untrained", "_chance"))
    left_out = dict.fromkeys((*cloze, "kv_cache_bytes_per_token", "kv_cache_share"))
    whole, lean = fakes.make_record("mod"), fakes.make_record("mod", metrics=left_out)
    heads = set(_cells(Leaderboard.of([whole], times=times_of(whole)), "mod"))
    assert heads - set(_cells(Leaderboard.of([lean]), "mod")) == {
        "cloze accuracy (untrained, chance)",
        "training step (ms), median ± IQR",
        "peak memory (MB)",
        "KV cache (B/token)",
    }
    assert _cells(Leaderboard.of([lean]), "mod")["KV cache, share of dense"] == "-"
    other = fakes.make_record("vanilla")
    board = Leaderboard.of([lean, other], times=times_of(other))
    assert _cells(board, "mod")["peak memory (MB)"] == "-"


def test_a_run_that_ends_above_its_unigram_loss_is_marked(fakes):
    board = Leaderboard.of([fakes.make_record("bad", loss=6.5), fakes.make_record("good")])
    assert (_cells(board, "good")["group"], _cells(board, "bad")["group"]) == ("-", "†")
    assert "- **bad**: held-out loss is above the unigram loss\n" in _text(board)
    assert "†" not in _text(Leaderboard.of([fakes.make_record("good")]))


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
    board = Leaderboard.of([record], times=times)
    shown = "100.0 ± 6.0" if stable else "0.1 ± 0.0"
    assert _cells(board, "mod")["training step (ms), median ± IQR"] == f"{shown}{marks}"
