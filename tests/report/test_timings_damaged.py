"""A line of timings that is JSON and yet tells less than it must is refused in a sentence."""

import re
from dataclasses import replace
from typing import Any

import pytest
from timings_made_up import ceiling, cell_of, make_case, make_timing, timed, weighed

from modbench.errors import UserError
from modbench.report.timing import Timing
from modbench.report.timing_figures import timing_figures
from modbench.report.timing_page import timing_page
from modbench.report.timing_table import TimingTable

GEMM = {"dtype": "float32", "component": "head", "rows": 1, "inner": 1, "columns": 1}
LACK = {"name": "train", "phase": "train", "sequences": 1, "tokens": 1, "past": 0}
LACK |= {"asked_bytes": None, "error": "out of memory"}
FLOPS = make_case()["flops"]
OUTGROWN = timed("mod", make_case(), ran_out=[LACK], status="oom", error="train: out of memory")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flops": {"realised": {}, "dispatched": {}}}, "case flops lacks the field 'nominal'"),
        ({"flops": make_case()["flops"] | {"realised": {}}}, "case flops realised lacks the field 'mod"),
        ({"phase": "dance"}, "case phase 'dance' is not known"),
        ({"gpu": {}}, "case gpu lacks the field 'throttled'"),
        ({"tokens": 0}, "case tokens is 0; it must be 1 or more"),
        ({"past": -1}, "case past is -1; it must be 0 or more"),
        ({"loops": 10**400}, f"case loops is {10**400}; it must be 1 or more, and 1e+30 or less"),
        (
            {"flops": FLOPS | {"realised": {"model": -1, "executed": 1}}},
            "case flops realised model is -1",
        ),
        (
            {"flops": FLOPS | {"dispatched": {"model": 1, "executed": 10**31}}},
            f"case flops dispatched executed is {10**31}; it must be 0 or more, and 1e+30 or less",
        ),
        ({"seconds": [0.1, -0.1]}, "case seconds is [0.1, -0.1]; it must be numbers above 0"),
    ],
)
def test_of_a_case(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        timed("mod", make_case() | changes)


def changed(timing: Timing, **measured: Any) -> None:
    replace(timing, measured={**timing.measured, **measured})


@pytest.mark.parametrize(
    ("timing", "measured", "sentence"),
    [
        (timed("mod", make_case()), {"machine": {}}, "measured machine lacks the field 'overloaded'"),
        (ceiling(), {"machine": {"overloaded": 1}}, "'overloaded' is 1; it must be of type bool"),
        (OUTGROWN, {"ran_out": [LACK | {"phase": "dance"}]}, "case phase 'dance' is not known"),
        (OUTGROWN, {"ran_out": [LACK | {"error": None}]}, "'error' is None; it must be of type str"),
        (OUTGROWN, {"ran_out": [LACK | {"seconds": []}]}, "ran out has the unknown field 'seconds'"),
        (timed("mod", make_case()), {"ran_out": [LACK]}, "status is ok and cases ran out of memory"),
        (ceiling(), {"ran_out": []}, "measured has the unknown field 'ran_out'"),
        (ceiling(), {"gemm": [GEMM]}, "measured gemm lacks the field 'flops_per_second'"),
        *(
            (
                ceiling(),
                {"gemm": [GEMM | {"flops_per_second": rate}]},
                f"per_second is {rate}; it must be ab",
            )
            for rate in (0, 0.0, -1.0, 10**400)
        ),
        *(
            (
                ceiling(),
                {"copy_bytes_per_second": rate},
                f"copy_bytes_per_second is {rate}; it must be abov",
            )
            for rate in (0, -2.5)
        ),
        (ceiling(), {"gpu": {"clock_mhz": []}}, "measured gpu lacks the field 'throttled'"),
        (weighed("mod", 99, 98), {"predicted": {"peak": 1}}, "it must have the parts of both, and peak"),
        (
            weighed("mod", 99, 98),
            {"predicted": {}, "measured": {}},
            "must have the parts of both, and p",
        ),
    ],
)
def test_of_what_was_measured(timing: Timing, measured: dict[str, Any], sentence: str) -> None:
    changed(timing)
    with pytest.raises(UserError, match=re.escape(sentence)):
        changed(timing, **measured)


def test_parts_of_memory_are_bytes() -> None:
    timing = weighed("mod", 99, 98)
    parts = timing.measured["measured"] | {"gradients": "ten"}
    with pytest.raises(UserError, match="field 'gradients' is 'ten'; it must be of type int"):
        changed(timing, measured=parts)


@pytest.mark.parametrize(("measured", "predicted"), [(0, 1000), (1000, 0), (-5, 1000), (0, 0)])
def test_a_peak_that_no_page_was_needed_for_is_in_the_table_and_in_no_figure(
    measured: int, predicted: int
) -> None:
    table = TimingTable.of([weighed("mod", measured, predicted)])
    assert "peak, measured over predicted" in timing_page(table)
    contents = timing_figures(table)
    assert b"no memory was measured" in contents["memory_predicted.svg"]


def test_bytes_beyond_counting_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"measured measured activations is 10+; it must be -1e\+30 or m"
    ):
        weighed("mod", 10**40 + 40, 5)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"dtype": None}, "environment field 'dtype' is None; it must be of type str"),
        ({"variables": ["A=1"]}, "environment variables is ['A=1']; it must be an object"),
        ({"variables": {"A": 1}}, "environment variables field 'A' is 1; it must be of type str"),
    ],
)
def test_of_an_environment(environment: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        timed("mod", make_case(), environment=environment)


def test_a_dtype_is_told_in_any_case() -> None:
    timing = timed("mod", make_case())
    environment = {name: value for name, value in timing.environment.items() if name != "dtype"}
    with pytest.raises(UserError, match="environment lacks the field 'dtype'"):
        replace(timing, environment=environment)


@pytest.mark.parametrize("name", ["sequence", "batch", "precision"])
def test_what_a_shape_is_called_by_is_told(name: str) -> None:
    cell = cell_of("mod")
    cell["train"] = {field: value for field, value in cell["train"].items() if field != name}
    with pytest.raises(UserError, match=f"cell train lacks the field '{name}'"):
        make_timing("time", cell, timed("mod", make_case()).measured)
