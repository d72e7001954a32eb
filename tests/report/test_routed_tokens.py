"""Selected tokens, as the page tells it."""

import pytest

from modbench.report.leaderboard import Leaderboard
from modbench.report.markdown import markdown
from modbench.report.routing_tables import shown


def _line(records) -> list[str]:
    page = markdown(Leaderboard.of(records))
    assert "## Selected tokens" in page
    section = page.split("## Selected tokens")[1].split("## Notes")[0]
    (line,) = [line for line in section.splitlines() if line.startswith("| mod |")]
    return [cell.strip() for cell in line.split(" | ")]


def test_a_page_without_routing_has_no_such_section(six):
    assert "Selected tokens" not in markdown(Leaderboard.of(six))


def test_the_ends_are_named_with_their_share_and_how_often_they_were_seen(fakes):
    cells = _line([fakes.make_record("mod", routing=fakes.make_routing())])
    # Of the four, one was seen too seldom; of three, one stands at each end.
    assert cells[1:] == [
        "1, 3",
        "0: 80.0 %, 1: 20.0 %, 2: 0.0 %",
        '"␣the" 90 % of 50',
        '"\\|" 0 % of 16 |',
    ]


def test_seeds_are_added_up_before_tokens_are_chosen(fakes):
    routings = [fakes.make_routing(), fakes.make_routing(routed=(0, 0, 32, 0))]
    records = [fakes.make_record("mod", seed=s, routing=r) for s, r in enumerate(routings)]
    cells = _line(records)
    assert cells[3:] == ['"\\|" 50 % of 32', '"⏎" 8 % of 40 |']


def test_of_those_that_never_enter_the_most_seen_come_first(fakes):
    cells = _line([fakes.make_record("mod", routing=fakes.make_routing(routed=(0, 6, 0, 4)))])
    assert cells[3:] == ['"⏎" 15 % of 20', '"␣the" 0 % of 50 |']


def test_what_never_enters_is_not_among_what_enters_most(fakes):
    cells = _line([fakes.make_record("mod", routing=fakes.make_routing(routed=(0, 0, 0, 4)))])
    assert cells[3:] == ["-", '"␣the" 0 % of 50 |']


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "(end of text)"),
        (" a b", '"␣a␣b"'),
        ("\n\n        ", '"⏎⏎␣\N{MULTIPLICATION SIGN}8"'),
        ("\t|", '"⇥|"'),
        ("\x0b\u202e", '"\\x0b\\u202e"'),
        ("\\xe2", '"\\xe2"'),
        ("字", '"字"'),
    ],
)
def test_a_tokens_text_is_one_line_that_shows_its_white_space(text, said):
    assert shown(text) == said


def test_foreign_text_stays_text(fakes):
    routing = fakes.make_routing()
    routing["texts"][0] = "<script>|`"
    page = markdown(Leaderboard.of([fakes.make_record("mod", routing=routing)]))
    assert '"&lt;script&gt;\\|\\`" 90 % of 50' in page
    assert "<script" not in page
