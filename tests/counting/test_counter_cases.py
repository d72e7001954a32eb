"""Our counter on every case whose truth is known by hand: equal to the integer."""

import csv
from pathlib import Path

import pytest
from counter_case import Case
from counter_cases import CASES

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


def test_the_committed_table_says_of_our_counter_what_it_counts() -> None:
    lines = (REPOSITORY / "docs" / "counters.csv").read_text().splitlines()
    rows = list(csv.DictReader(lines))
    assert [(row["group"], row["case"], int(row["truth"])) for row in rows] == [
        (case.group, case.name, case.truth) for case in CASES
    ]
    wrong = [row["case"] for row in rows if row["modbench"] != "exact"]
    assert wrong == [case.name for case in CASES if case.opaque]
