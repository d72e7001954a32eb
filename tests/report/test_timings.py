"""From lines of timings to rows: what is held against what, what is left out, what is refused."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from made_up_records import make_record, replace
from timings_made_up import (
    ceiling,
    labels_in,
    make_case,
    make_timing,
    marks_of,
    rows_of,
    suite_of,
    table_of,
    timed,
    timed_of,
    weighed,
)

from modbench.analysis.frames import plain_records
from modbench.errors import UserError
from modbench.records.record import PROTOCOL, TimingRecord, read_record
from modbench.records.store import append_record, read_suite
from modbench.report.times import Times, labels_of, newest_session, timed_frame
from modbench.report.timing_page import timing_page
from modbench.report.write import write_report

THROTTLED = ("hardware slowdown",)


def row_of(*timings: TimingRecord) -> dict[str, Any]:
    (row,) = rows_of(*timings).values()
    return row


def test_a_line_survives_its_own_line() -> None:
    timing = timed("vanilla", make_case())
    assert read_record(timing.line()) == timing


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"key": "0" * 16}, "its timed's key is"),
        ({"measures": "weight"}, "measures is 'weight'; input should be 'training'"),
        ({"measures": "ceiling"}, "a ceiling has no router"),
        ({"measured": {}}, r"measured\.cases is missing"),
        ({"status": "oom"}, "status is oom and error is empty"),
    ],
)
def test_a_line_that_cannot_be_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        replace(timed("vanilla", make_case()), **change)


def test_samples_of_all_processes_count_together() -> None:
    row = row_of(
        timed("vanilla", make_case(seconds=(1.0, 1.02))),
        timed("vanilla", make_case(seconds=(1.04, 1.06)), repetition=2),
    )
    assert (row["seconds_median"], row["n"], row["processes"]) == (1.03, 4, 2)
    assert row["seconds_iqr"] == pytest.approx(0.03)
    assert row["stable"]
    assert row["failed"] == 0


def test_realised_efficiency_is_achieved_over_expected_speed_up() -> None:
    rows = rows_of(
        timed("vanilla", make_case(seconds=(0.4,) * 4, flops=4000)),
        timed("mod", make_case(seconds=(0.25,) * 4, flops=2000)),
    )
    row = rows["mod", "forward"]
    assert row["speed_up"] == pytest.approx(1.6)
    assert row["promised_speed_up"] == 2.0
    assert row["realised_efficiency"] == pytest.approx(0.8)
    assert rows["vanilla", "forward"]["realised_efficiency"] == 1.0


def test_the_speed_up_to_reach_follows_realised_flops() -> None:
    routed = make_case(flops=2000)
    one = dict.fromkeys(("model", "full", "executed"), 1)
    routed["flops"] = {"realised": {**one, "model": 2000}, "nominal": one, "dispatched": one}
    row = rows_of(timed("vanilla", make_case(flops=4000)), timed("mod", routed))["mod", "forward"]
    assert (row["promised_speed_up"], row["realised_efficiency"]) == (2.0, 0.5)


def test_without_a_dense_row_there_is_no_efficiency() -> None:
    alone, dense = timed("mod", make_case()), timed("vanilla", make_case())
    assert row_of(alone)["realised_efficiency"] is None
    assert (
        "no realised efficiency: this session has no vanilla row"
        in timing_page(table_of(alone)).to_markdown()
    )
    assert "no realised efficiency" not in timing_page(table_of(alone, dense)).to_markdown()
    rows = rows_of(timed("mod", make_case("prefill 8 x 1")), timed("vanilla", make_case()))
    assert rows["mod", "prefill 8 x 1"]["realised_efficiency"] is None


def test_utilisation_is_over_the_fastest_matmul_of_the_rows_dtype() -> None:
    row = row_of(
        timed("vanilla", make_case(flops=2 * 10**8, seconds=(0.01,) * 4)),
        ceiling(4e11),
        ceiling(2e11, repetition=2),
    )
    assert row["ceiling"] == 4e11
    # As the convention executed counts it, five times model, and as it was dispatched, twice.
    assert row["flops_per_second"] == pytest.approx(5 * 2 * 2 * 10**8 / 0.01)
    assert row["utilisation"] == pytest.approx(0.5)


@pytest.mark.parametrize("shaky", ["vanilla", "mod"])
def test_what_follows_from_an_unstable_time_is_marked(shaky: str) -> None:
    """A speed-up rests on two times."""
    times = dict.fromkeys(("vanilla", "mod"), (1.0,) * 4) | {shaky: (1.0, 1.0, 1.0, 1.9)}
    timings = [timed(label, make_case(seconds=seconds)) for label, seconds in times.items()]
    row = rows_of(*timings)["mod", "forward"]
    assert (row["stable"], row["efficiency_marks"]) == (shaky != "mod", "unstable")
    page = timing_page(table_of(*timings, ceiling())).to_markdown()
    assert "| mod | 1.00 (1.00, unstable) |" in page
    assert f"| {shaky} | 1.0 (unstable) |" in page
    stable = [timed(label, make_case(seconds=(1.0,) * 4)) for label in times]
    assert (
        "unstable"
        not in timing_page(table_of(*stable, ceiling())).to_markdown().partition("## Notes")[0]
    )


@pytest.mark.parametrize("busy", ["vanilla", "mod"])
def test_what_follows_from_a_loaded_machine_is_marked(busy: str) -> None:
    timings = [timed(one, make_case(), overloaded=one == busy) for one in ("vanilla", "mod")]
    row = rows_of(*timings)["mod", "forward"]
    assert (row["loaded"], row["efficiency_marks"]) == (busy == "mod", "loaded")
    page = timing_page(table_of(*timings, ceiling())).to_markdown().partition("## Notes")[0]
    assert "| mod | 1.00 (1.00, loaded) |" in page
    assert f"| {busy} | 100.00 ± 0.00 (loaded) |" in page
    assert page.count("(loaded)") == 2  # its time and its utilisation


def test_two_schemes_under_one_label_are_not_pooled() -> None:
    keys = [timed_of("mine", "mod", options={"every": every}) for every in (1, 2)]
    measured = timed("mine", make_case()).measured
    timings = [make_timing("training", what, measured) for what in keys]
    rows = plain_records(Times(timings, {what.key: "mine" for what in keys}).cases)
    assert sorted((row["key"], row["n"]) for row in rows) == sorted((what.key, 4) for what in keys)


def test_labels_are_those_of_the_last_suite_that_names_a_scheme() -> None:
    early = suite_of({"dense": ["a"], "mod": ["b"], "gone": ["c"]})
    last = suite_of({"vanilla": ["a"], "mod": ["d"]})
    # b was timed before an option of mod was changed: the label is another scheme's now.
    assert labels_of([early, last]) == {"a": "vanilla", "d": "mod", "c": "gone"}
    assert labels_of([last, early]) == {"a": "dense", "b": "mod", "c": "gone"}


def test_a_throttled_process_is_left_out_where_another_is_not() -> None:
    row = row_of(
        timed("vanilla", make_case(throttled=(), joules=7.25)),
        timed("vanilla", make_case(seconds=(9.0,) * 4, throttled=THROTTLED, joules=99.0), repetition=2),
    )
    assert (row["seconds_median"], row["n"], row["processes"], marks_of(row)) == (0.1, 4, 1, "")
    assert row["joules"] == 7.25


@pytest.mark.parametrize("slowed", ["vanilla", "mod"])
def test_a_time_that_was_throttled_throughout_is_marked_and_what_follows_from_it(slowed: str) -> None:
    timings = [
        timed(label, make_case(throttled=THROTTLED if label == slowed else ()))
        for label in ("vanilla", "mod")
    ]
    timings.append(ceiling(throttled=THROTTLED))
    rows = rows_of(*timings)
    assert (rows[slowed, "forward"]["throttled"], marks_of(rows[slowed, "forward"])) == (
        True,
        "throttled",
    )
    assert rows["mod", "forward"]["efficiency_marks"] == "throttled"
    page = timing_page(table_of(*timings)).to_markdown()
    assert f"| {slowed} | 100.00 ± 0.00 (throttled) |" in page
    assert "ceilings: loaded or throttled" in page


@pytest.mark.parametrize(
    ("name", "shares", "mark", "cell"),
    [
        ("decode after 8 x 1", (0.9,), "host-bound", "90 (host-bound)"),
        ("prefill 8 x 1", (0.2, 0.5), "host-bound", "35 (host-bound)"),
        ("decode after 8 x 1", (0.2, 0.3), "", "25"),
    ],
)
def test_a_case_that_waits_for_the_host_is_marked_and_what_is_compared_with_it(
    name: str, shares: tuple[float, ...], mark: str, cell: str
) -> None:
    timings = [
        timed("vanilla", make_case(name) | {"host_share": share}, repetition=number)
        for number, share in enumerate(shares, start=1)
    ]
    timings.append(timed("mod", make_case(name) | {"host_share": 0.1}))
    rows = rows_of(*timings)
    assert marks_of(rows["vanilla", name]) == mark
    assert (marks_of(rows["mod", name]), rows["mod", name]["efficiency_marks"]) == ("", mark)
    page = timing_page(table_of(*timings)).to_markdown()
    assert f"| vanilla | {cell} |" in page
    assert "| mod | 10 |" in page


@pytest.mark.parametrize(("in_a_row", "share"), [(0.06, 0.4), (0.11, 0.0)])
def test_the_hosts_share_of_a_step_is_what_it_takes_less_in_a_row(in_a_row: float, share: float) -> None:
    """Another case of the table; columns of a training step show the single one."""
    step, row = make_case("train"), make_case("train x 20", seconds=(in_a_row,) * 3, loops=20)
    timing = timed("mod", make_case(), step, row)
    rows = rows_of(timing)
    assert rows["mod", "train"]["host_share"] == pytest.approx(share)
    assert marks_of(rows["mod", "train"]) == marks_of(rows["mod", "train x 20"]) == ""
    assert rows["mod", "train x 20"]["host_share"] is None
    page = timing_page(table_of(timing)).to_markdown()
    assert "| scheme | forward | train | train x 20 |" in page
    assert f"| mod | - | {100 * share:.0f} | - |" in page
    result = make_record("mod")
    what = result.run.timed
    of_result = replace(timing, timed=what.as_json(), key=what.key)
    values = timed_frame(Times([of_result], {what.key: "mod"}))
    assert values.loc[what.key, "train_step_seconds_median"] == 0.1


def test_clocks_of_a_gpu_are_shown_and_its_power_cap_is_no_mark() -> None:
    def gpu(clock: int | None, capped: bool) -> dict[str, Any]:
        return {"gpu": {"mean_clock_mhz": clock, "power_capped": capped, "throttled": []}}

    timings = [
        timed("vanilla", make_case() | gpu(1400, True)),
        timed("vanilla", make_case() | gpu(1500, False), repetition=2),
        timed("mod", make_case() | gpu(1980, False)),
        timed("half", make_case() | gpu(None, False)),
    ]
    assert {marks_of(row) for row in rows_of(*timings).values()} == {""}
    page = timing_page(table_of(*timings)).to_markdown()
    assert "| vanilla | 1450 (power cap) |" in page
    assert "| mod | 1980 |" in page
    assert "| half | - |" in page


def test_programs_of_compiled_steps_are_shown() -> None:
    timing = timed("mod", make_case())
    timing.measured["programs"] = {"graphs": 3, "breaks": 1}
    (row,) = rows_of(timing).values()
    assert (row["graphs"], row["breaks"]) == (3, 1)
    assert "mod 3, 1 break." in timing_page(table_of(timing)).to_markdown()


def test_two_versions_of_the_measurement_are_never_mixed() -> None:
    """The newest version counts, whenever it was measured; an older one says so."""
    old = timed("vanilla", make_case(), session="old", started="2026-01-01T00:20:00+00:00")
    new = timed("vanilla", make_case(), session="new", protocol=PROTOCOL)
    assert newest_session([old, new]) == [new]
    assert newest_session([old]) == [old]
    with pytest.raises(UserError, match="protocol"):
        table_of(old, timed("mod", make_case(), protocol=PROTOCOL))
    assert read_record(new.line()).protocol == PROTOCOL  # type: ignore[union-attr]
    assert "protocol" not in old.line()
    assert "Version 1 of the measurement" in timing_page(table_of(old)).to_markdown()
    assert "of the measurement" not in timing_page(table_of(new)).to_markdown()


@pytest.mark.parametrize(
    "case",
    [
        make_case(seconds=(1.0, 1.0, 1.0, 1.6)),
        make_case(seconds=(0.0005,) * 4),
        make_case(seconds=(1.0, 1.0, 1.3, 0.7)),
    ],
    ids=["an extreme", "too short", "spread"],
)
def test_a_case_says_when_it_is_unstable(case: dict[str, Any]) -> None:
    row = row_of(timed("mod", case))
    assert (row["stable"], marks_of(row)) == (False, "unstable")
    assert "(unstable)" in timing_page(table_of(timed("mod", case))).to_markdown()


def test_memory_is_shown_by_part() -> None:
    table = table_of(weighed("mod", 1_100_000))
    (row,) = plain_records(table.memory)
    assert (row["peak"], row["gradients"], row["cache"]) == (1_100_000, 10, None)
    assert "| 0.0 | - | 1.1 | 1.1 |" in timing_page(table).to_markdown()


def test_timings_of_two_machines_are_refused_by_name() -> None:
    other = {"cpu": "Another CPU", "cores": 64}
    with pytest.raises(UserError, match="different machine") as raised:
        table_of(timed("vanilla", make_case()), timed("mod", make_case(), environment=other))
    assert "cpu Imaginary CPU, cores 2" in str(raised.value)
    assert "cpu Another CPU, cores 64" in str(raised.value)


@pytest.mark.parametrize(
    "changed",
    [
        *({"gpu": "Imaginary GPU"}, {"cores": 4}, {"threads": 1}, {"torch": "2.12.0"}),
        *({"driver": "1"}, {"cuda": "13.0"}),
    ],
    ids=str,
)
def test_each_part_of_a_machine_tells_it_from_others(changed: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="different machine"):
        table_of(timed("vanilla", make_case()), timed("mod", make_case(), environment=changed))


def test_the_newest_session_counts_and_of_a_job_done_twice_what_went_well() -> None:
    failed = {"status": "failed", "error": "broke", "measured": {}}
    late = {"started": "2026-01-02T00:00:00+00:00", "finished": "2026-01-02T00:01:00+00:00"}
    later = {"started": "2026-01-03T00:00:00+00:00", "finished": "2026-01-03T00:01:00+00:00"}
    old = timed("vanilla", make_case())
    good = timed("mod", make_case(), session="session-2", **late)
    bad = make_timing("training", timed_of("mod"), session="session-2", **{**later, **failed})
    assert newest_session([old, good, bad]) == newest_session([bad, good, old]) == [good]
    first = make_timing("training", timed_of("mod"), session="session-2", **{**late, **failed})
    again = timed("mod", make_case(), session="session-2", **later)
    assert newest_session([first, again]) == [again]
    lack = {"status": "oom", "error": "out of memory", "measured": {}}
    outgrown = make_timing("training", timed_of("mod"), session="session-2", **{**later, **lack})
    assert newest_session([first, outgrown]) == newest_session([outgrown, first]) == [outgrown]
    gone_on = timed("mod", make_case(), **later)
    assert {timing.session for timing in newest_session([old, good, gone_on])} == {"session-1"}


def write(folder: Path, timings: list[TimingRecord]) -> Path:
    suite = suite_of({label: [key] for key, label in labels_in(TIMINGS_OF_A_SESSION).items()})
    for record in (*timings, suite):
        append_record(folder, record)
    return folder


TIMINGS_OF_A_SESSION = [
    timed("vanilla/small", make_case(), make_case("decode after 8 x 1", tokens=16)),
    timed("mod/small", make_case(seconds=(0.08,) * 4, flops=7 * 10**8)),
    ceiling(),
    weighed("mod/small", 1100),
]


@pytest.mark.figures
def test_the_report_follows_from_the_set_of_lines(tmp_path: Path) -> None:
    one = write(tmp_path / "one", TIMINGS_OF_A_SESSION)
    many = tmp_path / "many"
    for timing in reversed(TIMINGS_OF_A_SESSION):
        write(many, [timing, timing])
    assert len(read_suite(many).timings) == 4
    assert [path.read_bytes() for path in write_report(one).paths] == [
        path.read_bytes() for path in write_report(many).paths
    ]
    names = {path.name for path in write_report(one).paths}
    assert names == {"timings.csv", "memory.csv", "timings.md"}


def test_the_csv_has_every_case_in_full(tmp_path: Path) -> None:
    write_report(write(tmp_path, TIMINGS_OF_A_SESSION))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "timings.csv").read_text())))
    assert [(row["label"], row["shape"], row["width"], row["case"]) for row in rows] == [
        ("mod", "small", "128", "forward"),
        ("vanilla", "small", "128", "forward"),
        ("vanilla", "small", "128", "decode after 8 x 1"),
    ]
    assert float(rows[0]["realised_efficiency"]) == pytest.approx(1.25 * 0.7)
    counts = [int(rows[0][f"flops_{name}"]) for name in ("nominal", "realised", "executed")]
    assert counts == [7 * 7 * 10**8, 7 * 10**8, 2 * 5 * 7 * 10**8]
    assert "joules" not in rows[0]
    assert [row["past"] for row in rows] == ["0", "0", "0"]  # a 0 is no blank
    (row,) = csv.DictReader(io.StringIO((tmp_path / "memory.csv").read_text()))
    assert [row[name] for name in ("label", "shape", "phase", "peak")] == [
        *("mod", "small", "training", "1100")
    ]


def test_a_scheme_is_compared_to_vanilla_of_its_own_size() -> None:
    timings, model = [], {"small": {"width": 128}, "large": {"width": 256}}
    for label, seconds in (("vanilla/small", 1.0), ("mod/small", 0.5), ("vanilla/large", 8.0)):
        what = timed_of(label, model=model[label.partition("/")[2]])
        measured = timed("x", make_case(seconds=(seconds,) * 4)).measured
        timings.append(make_timing("training", what, measured))
    table = table_of(*timings)
    speed_ups = {row["label"]: row["speed_up"] for row in plain_records(table.cases)}
    assert speed_ups == {"vanilla/small": 1.0, "mod/small": 2.0, "vanilla/large": 1.0}
    page = timing_page(table).to_markdown()
    assert re.search(r"Model of mod/small, vanilla/small: .*width 128;", page)
    assert re.search(r"Model of vanilla/large: .*width 256;", page)
