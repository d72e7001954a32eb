"""Damaged lines of timings are refused with one sentence."""

import re
from dataclasses import replace
from typing import Any

import pytest
from timings_made_up import ceiling, make_case, table_of, timed, weighed

from modbench.errors import UserError
from modbench.records.record import TimingRecord
from modbench.report.timing.page import timing_page

GEMM = {"dtype": "float32", "component": "head", "rows": 1, "inner": 1, "columns": 1}
LACK = {"name": "train", "phase": "train", "sequences": 1, "tokens": 1, "past": 0}
LACK |= {"asked_bytes": None, "error": "out of memory"}
OUTGROWN = timed("mod", make_case(), ran_out=[LACK], status="oom", error="train: out of memory")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flops": make_case()["flops"] | {"realised": {}}}, "flops.realised.model is missing"),
        ({"phase": "dance"}, "measured.cases[0].phase is 'dance'; input should be 'forward'"),
        ({"gpu": {}}, "measured.cases[0].gpu.throttled is missing"),
        ({"tokens": 0}, "measured.cases[0].tokens is 0"),
        ({"seconds": [0.1, -0.1]}, "measured.cases[0].seconds[1] is -0.1"),
        ({"seconds": []}, "measured.cases[0].seconds is []"),
    ],
)
def test_of_a_case(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        timed("mod", make_case() | changes)


def changed(timing: TimingRecord, **measured: Any) -> None:
    replace(timing, measured={**timing.measured, **measured})


@pytest.mark.parametrize(
    ("timing", "measured", "sentence"),
    [
        (timed("mod", make_case()), {"machine": {}}, "measured.machine.overloaded is missing"),
        (OUTGROWN, {"ran_out": [LACK | {"error": None}]}, "measured.ran_out[0].error is None"),
        (ceiling(), {"gemm": [GEMM]}, "measured.gemm[0].flops_per_second is missing"),
        (ceiling(), {"copy_bytes_per_second": 0}, "measured.copy_bytes_per_second is 0"),
        (weighed("mod", 99, 98), {"predicted": {}}, "measured and predicted differ in their parts"),
    ],
)
def test_of_what_was_measured(timing: TimingRecord, measured: dict[str, Any], sentence: str) -> None:
    changed(timing)
    with pytest.raises(UserError, match=re.escape(sentence)):
        changed(timing, **measured)


@pytest.mark.parametrize(("measured", "predicted"), [(0, 1000), (1000, 0), (-5, 1000), (0, 0)])
def test_a_peak_that_no_page_was_needed_for_is_in_the_table(measured: int, predicted: int) -> None:
    table = table_of(weighed("mod", measured, predicted))
    assert "peak, measured over predicted" in timing_page(table).to_markdown()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"dtype": None}, "environment.dtype is None; input should be a valid string"),
        ({"variables": {"A": 1}}, "environment.variables.A is 1; input should be a valid string"),
    ],
)
def test_of_an_environment(environment: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        timed("mod", make_case(), environment=environment)


def test_the_shape_of_a_training_step_is_required() -> None:
    timing = timed("mod", make_case())
    fewer = {name: of for name, of in timing.timed.items() if name != "precision"}
    with pytest.raises(UserError, match=r"timed\.precision is missing"):
        replace(timing, timed=fewer)
