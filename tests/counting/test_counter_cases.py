"""Our counter on every case whose truth is known by hand: equal to the integer."""

import csv
from pathlib import Path

import pytest
import torch
from compare_counters import answer
from counter_case import Case, Work
from counter_cases import CASES
from other_counters import Tool

from modbench import FlopCounter
from modbench.errors import UserError

REPOSITORY = Path(__file__).parent.parent.parent
KNOWN = [case for case in CASES if not case.opaque]

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


def name(case: Case) -> str:
    return f"{case.group}: {case.name}"


@pytest.mark.parametrize("case", KNOWN, ids=name)
def test_the_counter_is_exact(case: Case) -> None:
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


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (100, "exact"),
        (120.0, "exact"),
        (0, "0.00"),
        (99.9, "0.999"),
        (100.1, "1.00"),
    ],
)
def test_only_the_integer_is_exact(said: float, answered: str) -> None:
    tool = Tool(name="a", package="torch", asked="", count=lambda work: said)
    case = Case(name="c", group="g", build=lambda: Work(run=list), truth=100, again=20)
    assert answer(tool, case) == answered


def test_a_counter_that_fails_is_told_by_its_error() -> None:
    tool = Tool(name="a", package="torch", asked="", count=lambda work: int("no figure"))
    case = Case(name="c", group="g", build=lambda: Work(run=list), truth=100)
    assert answer(tool, case) == "error ValueError"


def test_a_forward_only_counter_is_not_asked_about_training() -> None:
    tool = Tool(name="a", package="torch", asked="", count=lambda work: 100, forward_only=True)
    case = Case(name="c", group="g", build=lambda: Work(run=list), truth=100)
    assert answer(tool, case) == "can't"


def test_the_committed_table_says_of_our_counter_what_it_counts() -> None:
    lines = (REPOSITORY / "docs" / "counters.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    assert [(row["group"], row["case"], int(row["truth"])) for row in rows] == [
        (case.group, case.name, case.truth) for case in CASES
    ]
    wrong = [row["case"] for row in rows if row["modbench"] != "exact"]
    assert wrong == [case.name for case in CASES if case.opaque]
