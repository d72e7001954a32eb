"""The part of the page on experts that do nothing, on plainly made-up counts."""

from modbench.report.leaderboard import Leaderboard
from modbench.report.markdown import markdown


def _integrated(fakes, seed: int, by_no_op: list[int]):
    routing = fakes.make_routing((), (0, 2), load=(60, 40, 50, 50))  # two choices to each of 100 tokens
    routing["causal"]["experts"][1]["by_no_op"] = by_no_op
    return fakes.make_record("mode_integrated", options={"no_op_experts": 2}, routing=routing, seed=seed)


def test_seeds_are_added_up_and_layers_that_say_nothing_are_left_out(fakes):
    records = [_integrated(fakes, 0, [30, 40, 30]), _integrated(fakes, 1, [60, 40])]
    page = markdown(Leaderboard.of(records))
    assert "## No-op experts" in page
    # 100 and 40 of 400 choices, 30 of 200 tokens.
    assert "| mode_integrated | 2 | 35.0 % | 15.0 % |" in page
    assert "| mode_integrated | 0 |" not in page


def test_records_that_say_nothing_of_it_have_no_such_part(fakes):
    record = fakes.make_record("token_choice", routing=fakes.make_routing((), (0,)))
    assert "No-op experts" not in markdown(Leaderboard.of([record]))
