"""Samples are pooled only of processes that were set alike; what they did otherwise is told."""

import re
from typing import Any

import pytest
from timings_made_up import (
    make_case,
    make_timing,
    table_of,
    timed,
    timed_of,
    weighed,
)

from modbench.errors import UserError
from modbench.records.record import TimingRecord
from modbench.report.times import refuse_incomparable

SET = {"variables": {"OMP_NUM_THREADS": "2"}, "python": "3.11.7", "deterministic": False}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"python": "3.12.1"}, "python are not compared: (3.11.7) and (3.12.1)"),
        ({"deterministic": True}, "deterministic are not compared: (False) and (True)"),
        ({"variables": {"OMP_NUM_THREADS": "1"}}, "OMP_NUM_THREADS are not compared: (1) and (2)"),
        (
            {"variables": {"OMP_NUM_THREADS": "2", "NVIDIA_TF32_OVERRIDE": "1"}},
            "NVIDIA_TF32_OVERRIDE are not compared: (1) and (not set)",
        ),
        ({"variables": {}}, "OMP_NUM_THREADS are not compared: (2) and (not set)"),
    ],
    ids=str,
)
def test_timings_under_other_settings_are_refused_by_name(changed: dict[str, Any], named: str) -> None:
    one = timed("mod", make_case(), environment=SET)
    other = timed("mod", make_case(), repetition=2, environment={**SET, **changed})
    sentence = f"timings of one session with different {re.escape(named)}; time"
    with pytest.raises(UserError, match=sentence):
        table_of(one, other)
    assert len(table_of(one, one).cases) == 1


def test_memory_is_measured_under_an_allocator_of_its_own() -> None:
    """And under the same settings otherwise."""
    kept, back, threads = {"MALLOC_TOP_PAD_": "9"}, {"MALLOC_TOP_PAD_": "0"}, {"OMP_NUM_THREADS": "2"}

    def one(**variables: str) -> TimingRecord:
        return timed("mod", make_case(), environment={"variables": variables})

    def memory(**variables: str) -> TimingRecord:
        return weighed("mod", 99, environment={"variables": variables})

    refuse_incomparable([one(**kept), memory(**back)])
    with pytest.raises(UserError, match=r"OMP_NUM_THREADS are not compared: \(2\) and \(not set\)"):
        refuse_incomparable([one(**kept), memory(**back, **threads)])


def test_sizes_may_be_of_different_dtypes_and_a_process_that_died_tells_none() -> None:
    full = timed_of("mod in full", precision="float32")
    measured = timed("mod", make_case()).measured
    in_full = {"dtype": "float32"}
    died = make_timing(
        "training",
        timed_of("mod"),
        {},
        repetition=2,
        status="failed",
        error="broke",
        environment=in_full,
    )
    other = make_timing("training", full, measured, environment=in_full)
    labels = {*table_of(timed("mod", make_case()), died, other).cases["label"]}
    assert labels == {"mod", "mod in full"}
