"""Where memory ran out: what of it becomes a row, and what stands beside it."""

from dataclasses import replace

import pytest
from timings_made_up import cell_of, make_case, make_timing, rows_of, timed

from modbench.errors import UserError
from modbench.report.timing_page import timing_page
from modbench.report.timing_table import TimingTable


def test_out_of_memory_is_a_row_with_the_size() -> None:
    words = "out of memory, asked for 123 bytes (x)"
    bad = {"status": "oom", "error": words, "asked_bytes": 123}
    timings = [
        make_timing("time", cell_of("mod"), {}, **bad),
        make_timing("training_memory", cell_of("mod"), {}, **bad),
        timed("vanilla", make_case()),
    ]
    row = rows_of(*timings)["mod", "all"]
    assert (row.status, row.asked_bytes, row.seconds_median) == ("oom", 123, None)
    page = timing_page(TimingTable.of(timings))
    assert f"mod, all: oom: {words}" in page
    assert f"mod, memory of training: {words}" in page
    assert "oom, asked for 0.0" in page


def test_cases_before_memory_ran_out_stand() -> None:
    words = "out of memory, asked for 123 bytes (x)"
    bad = {"status": "oom", "error": words, "asked_bytes": 123}
    timings = [
        timed("mod", make_case(seconds=(0.1,) * 4), repetition=1, **bad),
        timed("mod", make_case(seconds=(0.1,) * 4), repetition=2, **bad),
        make_timing("time", cell_of("mod"), {}, repetition=3, **bad),
    ]
    rows = rows_of(*timings)
    assert set(rows) == {("mod", "forward"), ("mod", "all others")}
    case, others = rows["mod", "forward"], rows["mod", "all others"]
    assert (case.status, case.n, case.processes) == ("ok", 8, 2)
    assert "1 more processes failed" in case.remarks
    assert (others.status, others.asked_bytes, others.seconds_median) == ("oom", 123, None)
    assert f"mod, all others: oom: {words}" in timing_page(TimingTable.of(timings))


def test_a_case_that_memory_ran_out_in_is_a_row_beside_the_others() -> None:
    words = "out of memory, asked for 123 bytes (x)"
    lack = {"name": "train", "phase": "train", "sequences": 4, "tokens": 256, "past": 0}
    bad = {"status": "oom", "error": f"train: {words}", "asked_bytes": 123}
    ran_out = [lack | {"asked_bytes": 123, "error": words}]
    timings = [
        timed("mod", make_case(), repetition=1, ran_out=ran_out, **bad),
        timed("mod", make_case(), make_case("train"), repetition=2),
        timed("vanilla", make_case(), repetition=1, ran_out=ran_out, **bad),
        make_timing("time", cell_of("vanilla"), {}, repetition=2, status="failed", error="broke"),
    ]
    rows = rows_of(*timings)
    assert set(rows) == {(name, case) for name in ("mod", "vanilla") for case in ("forward", "train")}
    here, none = rows["mod", "train"], rows["vanilla", "train"]
    assert (here.status, here.n, here.remarks) == ("ok", 4, "memory ran out in 1 of 2 processes")
    assert rows["mod", "forward"].remarks == ""
    assert rows["vanilla", "forward"].remarks == "1 more processes failed"
    assert (none.status, none.asked_bytes, none.seconds_median) == ("oom", 123, None)
    assert (none.phase, none.sequences, none.tokens, none.past) == ("train", 4, 256, 0)
    page = timing_page(TimingTable.of(timings))
    assert f"vanilla, train: oom: {words}" in page
    assert "mod, train: memory ran out in 1 of 2 processes" in page


def test_cases_that_failed_are_a_row_beside_those_that_were_timed() -> None:
    lack = {"name": "train", "phase": "train", "sequences": 4, "tokens": 256, "past": 0}
    words = "prefill 8 x 1: KeyError: 'k'; train: out of memory (x)"
    bad = {"status": "failed", "error": words, "asked_bytes": 123}
    ran_out = [lack | {"asked_bytes": 123, "error": "out of memory (x)"}]
    timings = [
        timed("mod", make_case(), repetition=n, ran_out=ran_out if n == 1 else (), **bad) for n in (1, 2)
    ]
    rows = rows_of(*timings)
    assert [case for _, case in rows] == ["forward", "train", "all others"]
    assert (rows["mod", "forward"].status, rows["mod", "forward"].remarks) == ("ok", "")
    assert rows["mod", "train"].status == "oom"
    others = rows["mod", "all others"]
    assert (others.status, others.error) == ("failed", words)
    assert "mod, all others: failed: prefill 8 x 1: KeyError" in timing_page(TimingTable.of(timings))


def test_what_was_found_before_memory_ran_out_is_held_to_its_shape() -> None:
    timing = timed("mod", make_case(), status="oom", error="out of memory")
    with pytest.raises(UserError, match=r"measured\.balance is missing"):
        replace(timing, measured={"cases": []})
