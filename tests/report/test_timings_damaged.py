"""A line of timings that is JSON and yet tells less than it must is refused in a sentence."""

import re
from dataclasses import replace
from typing import Any

import pytest
from timings_made_up import ceiling, make_case, timed, weighed

from modbench.errors import UserError
from modbench.report.timing import Timing

GEMM = {"dtype": "float32", "component": "head", "rows": 1, "inner": 1, "columns": 1}
LACK = {"name": "train", "phase": "train", "sequences": 1, "tokens": 1, "past": 0}
LACK |= {"asked_bytes": None, "error": "out of memory"}
OUTGROWN = timed("mod", make_case(), ran_out=[LACK], status="oom", error="train: out of memory")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flops": {"realised": {}, "dispatched": {}}}, "case flops lacks the field 'nominal'"),
        ({"flops": make_case()["flops"] | {"realised": {}}}, "case flops realised lacks the field 'mod"),
        ({"phase": "dance"}, "case phase 'dance' is not known"),
        ({"gpu": {}}, "case gpu lacks the field 'throttled'"),
        ({"tokens": 0}, "case tokens is 0; it must be 1 or more"),
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
