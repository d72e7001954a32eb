"""Sentences of timings.md about its rows."""

from typing import Any

import pytest
from timings_made_up import make_case, make_timing, rows_of, table_of, timed, timed_of, weighed

from modbench.records.record import TimingRecord
from modbench.report.timing.page import timing_page


def page_of(*timings: TimingRecord, **options: Any) -> str:
    return timing_page(table_of(*timings), **options).to_markdown()


def test_memory_is_shown_by_part_measured_before_predicted() -> None:
    sizes = {"parameters": 3, "gradients": 5, "optimizer": 7, "cache": 11, "activations": 13}
    measured = {part: 10**6 * size for part, size in sizes.items()} | {"peak": 39 * 10**6}
    predicted = {part: size // 2 for part, size in measured.items()}
    found = {"measured": measured, "predicted": predicted}
    page = page_of(make_timing("inference_memory", timed_of("mod"), found))
    assert "| scheme | phase | parameters | gradients | optimizer | cache | activations | peak |" in page
    cells = "3.0 / 1.5 | 5.0 / 2.5 | 7.0 / 3.5 | 11.0 / 5.5 | 13.0 / 6.5 | 39.0 / 19.5 | +100.0"
    assert f"| mod | inference | {cells} |" in page


def test_an_allocation_that_failed_is_in_the_unit_of_the_table() -> None:
    words = {"status": "oom", "error": "out of memory", "measured": {}, "asked_bytes": 2_345_678}
    page = page_of(timed("mod", make_case()), make_timing("training_memory", timed_of("mod"), **words))
    assert "| oom, asked for 2.3 |" in page


def test_the_page_says_when_it_was_measured() -> None:
    def at(label: str, day: int) -> TimingRecord:
        begun = {
            "started": f"2026-01-0{day}T00:00:00+00:00",
            "finished": f"2026-01-0{day}T01:00:00+00:00",
        }
        return timed(label, make_case(), **begun)

    page = page_of(at("mod", 2), at("vanilla", 1), at("other", 3))
    assert "Measured from 2026-01-01T00:00:00+00:00 to 2026-01-03T01:00:00+00:00." in page


def test_other_sessions_are_told_where_there_are_any() -> None:
    one = timed("mod", make_case())
    assert "Other sessions of this suite: 2; sessions aren't compared." in page_of(one, others=2)
    assert "Other sessions" not in page_of(one)


@pytest.mark.parametrize("balances", [("forced", "as routed"), ("forced",), ("as routed",)], ids=str)
def test_a_forced_balance_is_told_where_any_row_has_it(balances: tuple[str, ...]) -> None:
    page = page_of(*(timed(f"mod {one}", make_case(), balance=one) for one in balances))
    assert ("Balance is forced" in page) is ("forced" in balances)
    assert ("mod as routed, balance as routed" in page) is ("as routed" in balances)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_was_compiled_is_told(compiled: bool) -> None:
    made = timed("mod", make_case())
    page = page_of(make_timing("training", made.what, {**made.measured, "compiled": compiled}))
    assert f"Matmuls in bfloat16, {'compiled' if compiled else 'not compiled'};" in page


def test_a_process_that_measured_memory_is_not_among_the_timed_ones() -> None:
    (row,) = rows_of(timed("mod", make_case()), weighed("mod", 1100, 1000)).values()
    assert (row.processes, row.failed) == (1, 0)
