"""The page of timings shows the right number, in the right unit."""

import pytest
from timings_made_up import (
    ceiling,
    make_case,
    make_timing,
    rows_of,
    table_of,
    timed,
    timed_of,
)

from modbench.analysis.frames import plain_records
from modbench.records.record import TimingRecord
from modbench.report.timing_page import timing_page


def page_of(*timings: TimingRecord) -> str:
    return timing_page(table_of(*timings)).to_markdown()


@pytest.mark.parametrize(("loops", "stable"), [(1, False), (2, True)])
def test_one_sample_that_is_too_short_is_enough_to_doubt(loops: int, stable: bool) -> None:
    seconds = (0.00095, 0.00105, 0.00105, 0.00105)
    (row,) = rows_of(timed("mod", make_case(seconds=seconds, loops=loops))).values()
    assert row["stable"] == stable


def test_one_process_on_a_busy_machine_is_enough_to_doubt() -> None:
    processes = [timed("mod", make_case(), overloaded=n == 2, repetition=n) for n in (1, 2, 3)]
    (row,) = rows_of(*processes).values()
    assert row["loaded"]
    (row,) = rows_of(*processes[::2]).values()
    assert not row["loaded"]


def test_energy_is_the_mean_of_the_processes_that_told_it() -> None:
    processes = [
        timed("mod", make_case(joules=joules), repetition=n)
        for n, joules in enumerate((2.0, None, 4.0), start=1)
    ]
    (row,) = rows_of(*processes).values()
    assert row["joules"] == 3.0
    assert "| mod | 3 |" in page_of(*processes)


@pytest.mark.parametrize(("samples", "status"), [(1, "invalid"), (2, "invalid"), (3, "ok")])
def test_three_samples_are_the_fewest(samples: int, status: str) -> None:
    timing = timed("mod", make_case(seconds=(0.1,) * samples))
    (row,) = rows_of(timing).values()
    assert ((row["seconds_median"] is not None), row["status"], row["n"]) == (
        status == "ok",
        status,
        samples,
    )
    few = f"mod, forward: invalid: no time, too few samples: {samples}\n"
    assert (few in page_of(timing)) != (row["seconds_median"] is not None)


def test_a_case_of_too_few_samples_does_not_look_measured() -> None:
    timings = [
        timed("vanilla", make_case()),
        timed("mod", make_case(seconds=(0.1, 0.1), joules=1.0)),
        timed("mod", make_case(throttled=("power cap",)), repetition=2),
        timed("mod", repetition=3),
        ceiling(),
    ]
    row = rows_of(*timings)["mod", "forward"]
    assert (row["status"], row["seconds_median"], row["n"], row["processes"]) == ("invalid", None, 2, 1)
    assert row["flops_per_second"] is row["utilisation"] is row["speed_up"] is row["joules"] is None
    page = page_of(*timings)
    assert "- mod, forward: invalid: no time, too few samples: 2\n" in page


def test_of_two_vanilla_rows_the_first_is_the_one_to_beat() -> None:
    rows = rows_of(
        timed("vanilla/b", make_case(seconds=(0.8,) * 4)),
        timed("vanilla/a", make_case(seconds=(0.4,) * 4)),
        timed("mod", make_case(seconds=(0.2,) * 4)),
    )
    assert {row["label"]: row["speed_up"] for row in rows.values()} == {
        "mod": 2.0,
        "vanilla/a": 1.0,
        "vanilla/b": 0.5,
    }


@pytest.mark.parametrize(
    "useless",
    [
        timed("vanilla/a", status="failed", error="killed"),
        timed("vanilla/a", make_case(seconds=(0.1, 0.1))),
    ],
    ids=["failed", "too few samples"],
)
def test_a_vanilla_row_without_a_valid_time_leaves_its_place_to_the_next(useless: TimingRecord) -> None:
    rows = rows_of(
        useless,
        timed("vanilla/b", make_case(seconds=(0.8,) * 4)),
        timed("mod", make_case(seconds=(0.2,) * 4)),
    )
    assert rows["mod", "forward"]["speed_up"] == 4.0
    assert rows["vanilla/b", "forward"]["speed_up"] == 1.0


def test_a_step_per_flop_is_compared_with_the_dense_one_of_its_shape_or_the_nearest() -> None:
    def of(scheme: str, width: int, seconds: float, flops: int, **marks: bool) -> TimingRecord:
        label = f"{scheme}/w{width}"
        step = make_case("train", seconds=(seconds,) * 4, flops=flops)
        measured = timed(label, make_case(), step, **marks).measured
        return make_timing("training", timed_of(label, model={"width": width}), measured)

    dense = [of("vanilla", 64, 0.1, 1000), of("vanilla", 256, 0.4, 8000, overloaded=True)]
    # Seconds per 1,000 FLOPs: 0.1 and 0.05 of the dense model, 0.125 and 0.08 of mod.
    routed = [of("mod", 64, 0.25, 2000), of("mod", 200, 0.32, 4000)]
    page = page_of(*dense, *routed)
    assert "| scheme | forward | train | train, s/FLOP over dense |" in page
    assert "| mod/w64 | 100.00 ± 0.00 | 250.00 ± 0.00 | 1.25 |" in page
    assert "| mod/w200 | 100.00 ± 0.00 | 320.00 ± 0.00 | 1.60 (vanilla/w256, loaded) |" in page
    assert "a speed-up of 2 in FLOPs is one of 1.6 in seconds" in page
    assert "s/FLOP" not in page_of(*routed)


def test_a_width_between_two_dense_ones_is_compared_with_the_time_between_them() -> None:
    def of(scheme: str, width: int, seconds: float, flops: int) -> TimingRecord:
        label = f"{scheme}/w{width}"
        measured = timed(label, make_case(seconds=(seconds,) * 4, flops=flops)).measured
        return make_timing("training", timed_of(label, model={"width": width}), measured)

    dense = [of("vanilla", 64, 0.1, 1000), of("vanilla", 256, 0.4, 16000)]
    timings = [*dense, of("mod", 128, 0.1, 2000), of("mod", 512, 0.1, 2000)]
    rows = {row["label"]: row for row in plain_records(table_of(*timings).cases)}
    row, outside = rows["mod/w128"], rows["mod/w512"]
    # Half-way in the logarithm of the width: 0.2 s and 4,000 FLOPs.
    assert row["dense"] == "interpolated"
    assert row["speed_up"] == pytest.approx(2)
    assert row["promised_speed_up"] == pytest.approx(2)
    assert row["realised_efficiency"] == pytest.approx(1)
    assert outside["realised_efficiency"] is None
    assert rows["vanilla/w64"]["dense"] == "timed"
