"""Our counter on every case whose truth is known by hand: equal to the integer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from counter_case import Case
from counter_cases import CASES

from modbench import FlopCounter
from modbench.errors import UserError

REPOSITORY = Path(__file__).parent.parent.parent
KNOWN = [case for case in CASES if not case.opaque]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


def name(case: Case) -> str:
    return f"{case.group}: {case.name}"


@pytest.mark.parametrize("case", KNOWN, ids=name)
def test_the_counter_is_exact(case: Case) -> None:
    pytest.importorskip(case.wants)
    work = case.work()
    with FlopCounter() as counter:
        work.run()
    assert counter.total == case.truth
    assert counter.executed == case.truth + case.again
    assert counter.total_model <= counter.total


@pytest.mark.parametrize("case", [case for case in CASES if case.opaque], ids=name)
def test_the_counter_refuses_an_op_that_it_cannot_see_into(case: Case) -> None:
    with (
        pytest.raises(UserError, match="FLOPs of op 'counter_cases::hidden_matmul' are not known"),
        FlopCounter(),
    ):
        case.work().run()


def test_a_case_is_the_same_each_time_it_is_made() -> None:
    case = next(case for case in CASES if case.name == "GPT-2's shape, forward")
    first, second = case.work(), case.work()
    assert torch.equal(first.run(), second.run())  # type: ignore[arg-type]


def test_cases_have_names_of_their_own_and_a_truth() -> None:
    assert len({(case.group, case.name) for case in CASES}) == len(CASES)
    assert all(case.truth > 0 and case.again >= 0 for case in CASES)


def test_the_committed_table_says_of_our_counter_what_it_counts() -> None:
    lines = (REPOSITORY / "docs" / "counters.csv").read_text().splitlines()
    columns = lines[0].split(",")
    assert columns[4] == "modbench"
    import csv

    rows = list(csv.DictReader(lines))
    assert [(row["group"], row["case"], int(row["truth"])) for row in rows] == [
        (case.group, case.name, case.truth) for case in CASES
    ]
    wrong = [row["case"] for row in rows if row["modbench"] != "exact"]
    assert wrong == [case.name for case in CASES if case.opaque]
