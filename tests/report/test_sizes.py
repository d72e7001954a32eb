"""Suites of several shapes: one table per budget and data set, each scheme at its best size."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from modbench.records.result import Result
from modbench.report.leaderboard.board import Board, board_of
from modbench.report.leaderboard.page import leaderboard_page
from modbench.report.markdown import Page
from modbench.report.table import Table, to_csv

WIDTHS = {"S": 64, "M": 96, "L": 128}
Sized = Callable[..., list[Result]]


@pytest.fixture
def sized(fakes: Any) -> Sized:
    """Records of a scheme by the losses of its sizes: one loss, or one per seed."""

    def made(scheme: str, losses: Mapping[str, Any], **fields: Any) -> list[Result]:
        found = []
        for size, values in losses.items():
            model = {"width": WIDTHS[size], "heads": 4}
            metrics = {"active_parameters": 12 * WIDTHS[size] ** 2}
            for seed, loss in enumerate(values if isinstance(values, tuple) else (values,)):
                common = {"router": scheme.partition(" ")[0], "seed": seed, "model": model}
                found.append(
                    fakes.make_record(
                        f"{scheme}/{size}", loss=loss, metrics=metrics, **{**common, **fields}
                    )
                )
        return found

    return made


def placed(board: Board) -> dict[str, tuple[int | None, int, str]]:
    """Position, number of sizes and edge by label of the row at which each scheme is shown."""
    return {e["_name"]: (e["position"], e["sizes"], e["edge"]) for e in board.rows if e["best_size"]}


def cells_of(page: Page, first: str) -> list[Sequence[object]]:
    """The cells of each table row of ``page`` whose first or second cell is ``first``."""
    rows = [row for part in page.parts if isinstance(part, Table) for row in part.rows]
    return [row for row in rows if first in row[:2]]


def test_sizes_meet_in_one_table_with_each_scheme_at_its_best(sized: Sized) -> None:
    records = [
        *sized("vanilla", {"S": 5.0, "M": 4.6, "L": 4.9}),
        *sized("mod", {"S": 4.7, "M": 4.8, "L": 5.1}),
    ]
    board = board_of(records)
    assert len(board.comparisons) == 1
    assert placed(board) == {"vanilla/M": (1, 3, ""), "mod/S": (2, 3, "smallest")}
    page = leaderboard_page(board)
    assert "## 1e+12 training FLOPs" not in page.to_markdown()
    assert cells_of(page, "vanilla, M (best of 3 sizes)")[0][2] is None
    assert cells_of(page, "mod, S (best of 3 sizes, the smallest)")[0][2] == "+0.100"
    assert [cells[1] for cells in cells_of(page, "vanilla")] == ["S", "M (best)", "L"]
    assert "which is slightly optimistic" in page.to_markdown()


def test_best_size_is_chosen_by_the_mean_over_seeds(sized: Sized) -> None:
    board = board_of(sized("mod", {"S": (4.0, 5.0), "L": (4.4, 4.5)}))
    assert placed(board) == {"mod/L": (1, 2, "largest")}


def test_size_that_diverged_is_listed_and_not_chosen(sized: Sized) -> None:
    records = [*sized("mod", {"S": 4.9, "M": 4.8}), *sized("mod", {"L": 4.7}, status="diverged")]
    board = board_of(records)
    assert placed(board) == {"mod/M": (1, 2, "largest")}
    page = leaderboard_page(board)
    assert cells_of(page, "mod, M (best of 2 sizes, the largest, 1 more not ranked)")
    assert cells_of(page, "mod")[2][1] == "L (not ranked) †"
    assert "- **mod/L**: seed 0 diverged: the loss is not finite at step 7\n" in page.to_markdown()


def test_scheme_without_a_size_that_can_be_ranked_stays_in_the_table(sized: Sized) -> None:
    records = [
        *sized("leaky", {"S": 1.0, "L": 1.1}, failed_probes=(1,)),
        *sized("vanilla", {"S": 5.0, "L": 4.9}),
    ]
    page = leaderboard_page(board_of(records))
    assert cells_of(page, "vanilla, L (best of 2 sizes, the largest)")[0][0] == "-"
    assert cells_of(page, "leaky, S")[0][0] == "not ranked †"


def test_schemes_of_different_shapes_with_one_size_each_make_one_table(sized: Sized) -> None:
    records = [*sized("vanilla", {"L": 5.0}), *sized("half", {"S": 4.9}), *sized("mod", {"L": 4.8})]
    board = board_of(records)
    assert {label: position for label, (position, _, _) in placed(board).items()} == {
        "mod/L": 1,
        "half/S": 2,
        "vanilla/L": 3,
    }
    page = leaderboard_page(board)
    first = next(part for part in page.parts if isinstance(part, Table))
    assert [row[0] for row in first.rows] == ["mod, L", "half, S", "vanilla, L"]
    text = page.to_markdown()
    assert "The sizes of each scheme" not in text
    assert "optimistic" not in text


def test_budgets_are_tables_of_their_own(sized: Sized) -> None:
    records = sized("mod", {"S": 4.8, "L": 4.9}) + sized(
        "mod", {"S": 4.5, "L": 4.4}, train={"budget": 2 * 10**12}
    )
    board = board_of(records)
    assert [[row["budget"] for row in one] for one in board.comparisons] == [
        [10**12] * 2,
        [2 * 10**12] * 2,
    ]
    assert [row["edge"] for row in board.rows if row["best_size"]] == ["smallest", "largest"]


def table(board: Board) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(board.frame()))))


def test_rows_of_an_isoflop_suite_have_no_position_of_their_own(fakes: Any) -> None:
    plan = {"learning_rates": [0.1, 0.2, 0.4], "extensions": 1, "exponent": -0.5, "margin": 0.01}
    plan |= {"middle_width": 64, "middle_budget": 10, "seed": 0}
    (row,) = board_of([fakes.make_record("mod/w64", suite={"isoflop": plan})]).rows
    assert (row["position"], row["note"]) == (None, "")
