"""Suites of several sizes: a table for each, with the rows of that size."""

from collections.abc import Callable
from typing import Any

import pytest

from modbench.records.result import Result
from modbench.report.leaderboard import leaderboard_page
from modbench.report.suite import suite_of
from modbench.report.table import Table

WIDTHS = {"S": 64, "L": 128}
Sized = Callable[..., list[Result]]


@pytest.fixture
def sized(fakes: Any) -> Sized:
    """Records of schemes at both sizes, by the losses of each."""

    def made(budget: int = 10**12, **losses: tuple[float, float]) -> list[Result]:
        return [
            fakes.make_record(
                f"{scheme}/{size}",
                loss=loss,
                model={"width": width, "heads": 4},
                train={"budget": budget},
            )
            for scheme, of in losses.items()
            for (size, width), loss in zip(WIDTHS.items(), of, strict=True)
        ]

    return made


def test_a_row_is_compared_with_the_rows_of_its_size(sized: Sized) -> None:
    board = suite_of(sized(vanilla=(5.0, 4.9), mod=(4.7, 5.1)))
    assert board.titles == ["L, 1e+12 training FLOPs", "S, 1e+12 training FLOPs"]
    placed = [[(row["row"], row["position"]) for row in rows] for rows in board.comparisons]
    assert placed == [[("vanilla/L", 1), ("mod/L", 2)], [("mod/S", 1), ("vanilla/S", 2)]]
    pairs = [
        (of["comparison"], of["scheme"], of["other"], of["value"]) for of in board.pairs_of("dense")
    ]
    assert pairs == [
        (1, "mod/L", "vanilla/L", pytest.approx(0.2)),
        (2, "mod/S", "vanilla/S", pytest.approx(-0.3)),
    ]
    assert [*board.schemes["shape"]] == ["L", "L", "S", "S"]


def test_the_page_has_a_table_for_each_size_and_budget(sized: Sized) -> None:
    results = [*sized(vanilla=(5.0, 4.9), mod=(4.7, 5.1)), *sized(2 * 10**12, mod=(4.5, 4.4))]
    page = leaderboard_page(suite_of(results))
    first = [part for part in page.parts if isinstance(part, Table) and part.caption.startswith("Sche")]
    assert [[row[0] for row in table.rows] for table in first] == [
        ["vanilla/L", "mod/L"],
        ["mod/S", "vanilla/S"],
        ["mod/L"],
        ["mod/S"],
    ]
    assert "## S, 2e+12 training FLOPs" in page.to_markdown()
    assert "It rests on 2 budgets" in page.to_markdown()


def test_schemes_with_a_model_of_their_own_make_one_table(fakes: Any) -> None:
    losses = {"vanilla": 5.0, "half": 4.9, "mod": 4.8}
    records = [
        fakes.make_record(label, loss=loss, model={"width": 32 * width})
        for width, (label, loss) in enumerate(losses.items(), start=1)
    ]
    (rows,) = suite_of(records).comparisons
    assert [(row["row"], row["position"]) for row in rows] == [("mod", 1), ("half", 2), ("vanilla", 3)]


def test_rows_of_an_isoflop_suite_have_no_position_of_their_own(fakes: Any) -> None:
    plan = {"learning_rates": [0.1, 0.2, 0.4], "extensions": 1, "exponent": -0.5, "margin": 0.01}
    plan |= {"middle_width": 64, "middle_budget": 10, "seed": 0}
    (row,) = suite_of([fakes.make_record("mod/w64", suite={"isoflop": plan})]).rows
    assert (row["position"], row["note"]) == (None, None)
