"""Rows and remarks of cases that ran out of memory."""

import pytest
from made_up_records import replace
from timings_made_up import make_case, make_timing, rows_of, table_of, timed, timed_of

from modbench.errors import UserError
from modbench.report.timing_page import timing_page


def test_out_of_memory_is_a_row_with_the_size() -> None:
    words = "out of memory, asked for 123 bytes (x)"
    bad = {"status": "oom", "error": words, "asked_bytes": 123}
    timings = [
        make_timing("training", timed_of("mod"), {}, **bad),
        make_timing("training_memory", timed_of("mod"), {}, **bad),
        timed("vanilla", make_case()),
    ]
    row = rows_of(*timings)["mod", "all of training"]
    assert (row["status"], row["asked_bytes"], row["seconds_median"]) == ("oom", 123, None)
    page = timing_page(table_of(*timings)).to_markdown()
    assert f"mod, all of training: oom: {words}" in page
    assert f"mod, memory of training: {words}" in page
    assert "oom, asked for 0.0" in page


def test_cases_before_memory_ran_out_stand() -> None:
    words = "out of memory, asked for 123 bytes (x)"
    bad = {"status": "oom", "error": words, "asked_bytes": 123}
    timings = [
        timed("mod", make_case(seconds=(0.1,) * 4), repetition=1, **bad),
        timed("mod", make_case(seconds=(0.1,) * 4), repetition=2, **bad),
        make_timing("training", timed_of("mod"), {}, repetition=3, **bad),
    ]
    rows = rows_of(*timings)
    assert set(rows) == {("mod", "forward"), ("mod", "all others of training")}
    case, others = rows["mod", "forward"], rows["mod", "all others of training"]
    assert (case["status"], case["n"], case["processes"]) == ("ok", 8, 2)
    assert case["failed"] == 1
    assert (others["status"], others["asked_bytes"], others["seconds_median"]) == ("oom", 123, None)
    page = timing_page(table_of(*timings)).to_markdown()
    assert f"mod, all others of training: oom: {words}" in page
    assert "mod, forward: failed or out of memory in 1 of 3 processes" in page


def test_what_was_found_before_memory_ran_out_is_held_to_its_shape() -> None:
    timing = timed("mod", make_case(), status="oom", error="out of memory")
    with pytest.raises(UserError, match=r"measured\.balance is missing"):
        replace(timing, measured={"cases": []})
