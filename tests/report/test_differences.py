"""Comparisons with the dense row and between all rows, on the page and in differences.csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from made_up_records import make_record, replace, store, suite_record

from modbench.records.line import as_json, key_of
from modbench.records.probes import RANKING_PROBES
from modbench.records.result import Result, results_of
from modbench.records.store import read_suite
from modbench.report.leaderboard import leaderboard_page, margins_in_words
from modbench.report.pairs import by_seed, dense_row
from modbench.report.suite import Suite, suite_of
from modbench.report.table import Table, to_csv

LOSSES = {"mod": (3.90, 4.00, 4.11), "vanilla": (4.00, 4.11, 4.20), "token_choice": (4.00, 4.10, 4.21)}


def seeds(label: str, losses: Sequence[float], **fields: Any) -> list[Result]:
    return [make_record(label, seed=seed, loss=loss, **fields) for seed, loss in enumerate(losses)]


def suite(**fields: Any) -> list[Result]:
    return [result for label, losses in LOSSES.items() for result in seeds(label, losses, **fields)]


def table_about(board: Suite, caption: str) -> Table:
    parts = leaderboard_page(board).parts
    return next(part for part in parts if isinstance(part, Table) and part.caption.startswith(caption))


def minus_dense(board: Suite) -> dict[object, object]:
    table = table_about(board, "Schemes, ordered")
    scheme, minus = table.headings.index("scheme"), table.headings.index("minus dense (nats/token)")
    return {row[scheme]: row[minus] for row in table.rows}


def test_each_row_has_its_difference_to_the_dense_one() -> None:
    cells = minus_dense(suite_of(suite()))
    assert cells["vanilla"] is None
    assert str(cells["mod"]).startswith("-0.100 (-0.11")
    assert str(cells["mod"]).endswith(") better")
    assert str(cells["token_choice"]).endswith(") undecided")


def test_the_page_says_how_many_comparisons_there_are() -> None:
    more = {"budget": 2 * 10**12}
    one, two = suite(), [*suite(), *suite(train=more)]
    assert "Holm's method for 2 comparisons: all those with the dense row" in page_of(one)
    both = page_of(two)
    assert both.count("Holm's method for 4 comparisons: all those with the dense row") == 1
    assert both.count("Holm's method for 4 comparisons with the first row of each table") == 2


def page_of(results: Sequence[Result]) -> str:
    return leaderboard_page(suite_of(results)).to_markdown()


def test_rows_without_a_seed_in_common_are_not_compared() -> None:
    other = [make_record("vanilla", seed=seed, loss=4.0) for seed in (7, 8)]
    assert "No difference to the dense row vanilla: no row has its seeds." in page_of(
        [*seeds("mod", (4.0, 4.1)), *other]
    )


@pytest.mark.parametrize(("other", "shown"), [("Imaginary CPU", False), ("Another CPU", True)])
def test_rows_of_other_processor_types_are_marked(other: str, shown: bool) -> None:
    board = suite_of(
        [
            *seeds("vanilla", LOSSES["vanilla"]),
            *seeds("token_choice", LOSSES["token_choice"]),
            *seeds("mod", LOSSES["mod"], environment={"cpu": other}),
        ]
    )
    cells = minus_dense(board)
    assert ("‡" in str(cells["mod"])) == shown
    assert "‡" not in str(cells["token_choice"])
    page = leaderboard_page(board).to_markdown()
    assert ("‡: the two rows did not run on one processor type" in page) == shown
    rows = list(csv.DictReader(io.StringIO(to_csv(board.schemes))))
    assert {row["label"]: row["processor"] for row in rows}["mod"] == f"cpu {other}, threads 2"


def test_differences_csv_has_all_pairs() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(suite_of(suite()).pairs))))
    found = {(row["scheme"], row["other"]): row for row in rows}
    pair = found["token_choice", "mod"]  # mod is the best row
    assert float(pair["value"]) == pytest.approx(0.1)
    assert (pair["pairs"], pair["verdict"], pair["family"]) == ("3", "worse", "best")
    assert found["vanilla", "mod"]["family"] == "best"
    dense = found["mod", "vanilla"]
    assert float(dense["p_adjusted"]) == pytest.approx(2 * float(dense["p"]))


def test_one_seed_gives_differences_without_interval_and_verdict() -> None:
    records = [make_record("mod", loss=4.0), make_record("vanilla", loss=4.5)]
    board = suite_of(records)
    assert minus_dense(board)["mod"] == "-0.500"
    assert "no run was repeated" in leaderboard_page(board).to_markdown()
    row, _ = board.pairs_of()
    assert [row[name] for name in ("low", "p", "p_adjusted", "verdict")] == [None] * 4
    assert "p_adjusted" not in to_csv(board.pairs)  # empty in all rows


def test_one_seed_at_several_budgets_is_explained_once_and_promises_no_intervals(tmp_path: Path) -> None:
    left = [
        of for of in stated_results(tmp_path, [], left=1, budgets=(10**12, 2 * 10**12)) if not of.seed
    ]
    page = page_of(left)
    assert page.count("One seed gives no interval") == 1
    assert page.count("the noise between seeds is not known here, either") == 1
    assert "of this suite are left.\n" in page


def test_the_dense_row_is_the_first_of_the_suite_that_has_the_shape_of_most_rows(tmp_path: Path) -> None:
    shallow = make_record("vanilla, 2 layers", router="vanilla", model={"layers": 2})
    runs = [shallow, make_record("dense b", router="vanilla", train={"learning_rate": 0.1})]
    runs += [make_record("a dense", router="vanilla"), make_record("mod")]
    record = suite_record(runs)
    order = [run.label for run in runs]
    stated = as_json(record.suite)
    stated["rows"].sort(key=lambda row: order.index(row["label"]))
    record = replace(record, suite=stated, key=key_of(stated))
    results = results_of(read_suite(store(tmp_path, runs, record)))
    dense = dense_row(suite_of(results).rows)
    assert dense is not None
    assert dense["row"] == "dense b"


def test_many_rows_are_compared_with_the_dense_and_the_best_one_only(fakes):
    """All pairs of 500 rows would be 124,750."""
    labels = ["vanilla", *(f"row-{number}" for number in range(70))]
    results = [
        fakes.make_record(
            label,
            router="vanilla" if label == "vanilla" else "mod",
            seed=seed,
            loss=5 + n + seed * (n % 3) / 100,
        )
        for n, label in enumerate(labels)
        for seed in (0, 1)
    ]
    board = suite_of(results)
    assert board.pairs["family"].value_counts(dropna=False).to_dict() == {"dense": 70, "best": 70}
    page = leaderboard_page(board).to_markdown()
    assert "With more than 64 rows, only the differences to the dense row are listed" in page


def stated_results(
    path: Path,
    compared: Sequence[dict[str, Any]],
    *further: Result,
    left: int = 0,
    budgets: Sequence[int] = (10**12,),
    left_out: Sequence[Result] = (),
) -> list[Result]:
    """The rows of `suite` and ``further`` ones, whose suite states the pairs ``compared`` and wants
    ``left`` runs more. An earlier suite named the runs ``left_out``, too."""
    runs = [*further, *(run for budget in budgets for run in suite(train={"budget": budget}))]
    record = suite_record(runs)
    stated = as_json(record.suite) | ({"compare": list(compared)} if compared else {})
    stated["rows"].append({"label": "later", "runs": ["0" * 16] * left, "timed": []})
    record = replace(record, suite=stated, key=key_of(stated))
    earlier = (
        [suite_record([*runs, *left_out], finished="2020-01-01T00:00:00+00:00")] if left_out else []
    )
    return results_of(read_suite(store(path, [*runs, *left_out], *earlier, record)))


def test_a_suite_that_states_its_pairs_has_no_other_tests(tmp_path: Path) -> None:
    pair = {"b": "token_choice", "role": "secondary", "budget": 10**12}
    primary = {"a": "mod", "b": "vanilla", "role": "primary", "budget": 10**12, "margin": 0.3}
    board = suite_of(stated_results(tmp_path, [primary, {**pair, "a": "mod"}, {**pair, "a": "vanilla"}]))
    assert [*dict.fromkeys(pair["family"] for pair in board.pairs_of())] == ["primary", "secondary"]
    (first,) = board.pairs_of("primary")
    assert first["p_adjusted"] == first["p"]
    assert (first["verdict"], first["margin"]) == ("better", 0.3)
    second = board.pairs_of("secondary")
    assert [of["p_adjusted"] for of in second] == sorted(
        min(1.0, 2 * of["p"]) if of["scheme"] == "mod" else of["p"] for of in second
    )
    assert {row["group"] for row in board.rows} == {None}
    assert len(board.pairs) == 3  # all pairs are stated
    page = leaderboard_page(board).to_markdown()
    assert "the primary ones that the suite states" in page
    assert "minus dense" not in page


def test_the_pairs_that_a_suite_states_come_first_with_their_blocks(tmp_path: Path) -> None:
    pair = {"a": "mod", "b": "vanilla", "role": "primary", "budget": 10**12}
    dense = {"router": "vanilla", "train": {"learning_rate": 0.5}}
    pilot = [make_record("a pilot", seed=seed, loss=4.5, **dense) for seed in (7, 8)]
    elsewhere = make_record("mod", seed=3, loss=4.05, environment={"cpu": "Another CPU"})
    last = make_record("vanilla", seed=3, loss=4.1)
    board = suite_of(stated_results(tmp_path, [pair], *pilot, elsewhere, last))
    table = table_about(board, "Comparisons")
    (row,) = (dict(zip(table.headings, cells, strict=True)) for cells in table.rows)
    assert (row["scheme"], row["minus"], row["verdict"]) == ("mod", "vanilla", "better")
    assert row["blocks"] == "4 (1 split)"
    (stated,) = board.pairs_of("primary")
    seeds = by_seed(stated, board.of_row, board.schemes)
    assert seeds == pytest.approx({0: -0.1, 1: -0.11, 2: -0.09, 3: -0.05})
    page = leaderboard_page(board).to_markdown()
    assert page.index("| role |") < page.index("| validation loss")
    assert "*split*" in page
    assert "| a pilot | mod |" not in page


PAIR = {"a": "mod", "b": "vanilla", "role": "primary", "budget": 10**12, "margin": 0.02}


def test_a_run_that_the_suite_names_no_more_counts_in_no_stated_pair(tmp_path: Path) -> None:
    """The seeds of a block that isn't complete leave the suite file; their runs stay."""
    before = suite_of(stated_results(tmp_path / "before", [PAIR]))
    others = [make_record("mod", seed=7, loss=9.0), make_record("vanilla", seed=7, loss=1.0)]
    others += seeds("mod", (3.0,) * 4, train={"learning_rate": 0.5})  # the rate before a change
    after = suite_of(stated_results(tmp_path / "after", [PAIR], left_out=others))
    same = ("value", "low", "high", "p", "pairs", "degrees_of_freedom")
    (first,), (second,) = before.pairs_of("primary"), after.pairs_of("primary")
    assert {name: second[name] for name in same} == {name: first[name] for name in same}
    assert (second["pairs"], second["verdict"]) == (3, "better")
    assert after.noise[1].pooled == before.noise[1].pooled
    page = leaderboard_page(after).to_markdown()
    assert "| vanilla | 4 (3 compared) |" in page  # its mean is of other runs than its comparison
    assert "| token_choice | 3 |" in page
    assert page.count("| 4 (3 compared) |") == 2  # with mod's of the suite, without that of another rate


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_pair_is_compared_over_the_seeds_that_finished(tmp_path: Path, status: str) -> None:
    lost = make_record("mod", seed=3, status=status)
    board = suite_of(stated_results(tmp_path, [PAIR], lost, make_record("vanilla", seed=3, loss=4.1)))
    assert not next(row for row in board.rows if row["row"] == "mod")["position"]
    table = table_about(board, "Comparisons")
    assert [row[-1] for row in table.rows] == ["3 (1 lost)"]
    page = leaderboard_page(board).to_markdown()
    assert "*lost*: one of its runs diverged or failed" in page
    assert f"seed 3 {status}" in page.replace("\\", "")


def test_a_stated_pair_that_has_no_difference_stays_with_its_reason(tmp_path: Path) -> None:
    other = {"router": "mod", "train": {"learning_rate": 0.5}}
    leaky = seeds("leaky", (1.0, 1.1, 1.2), failed_probes=(RANKING_PROBES[0],), **other)
    apart = [make_record("apart", router="mod", seed=seed, loss=4 + seed / 70) for seed in (7, 8)]
    pairs = [PAIR | {"a": "leaky"}, PAIR | {"a": "apart"}, PAIR]
    board = suite_of(stated_results(tmp_path, pairs, *leaky, *apart))
    table = table_about(board, "Comparisons")
    verdict = table.headings.index("verdict")
    assert [row[1] for row in table.rows] == ["leaky", "apart", "mod"]
    assert str(table.rows[0][verdict]).startswith("leaky: failed audit probe")
    assert [str(row[verdict]) for row in table.rows[1:]] == ["no finished seed in common", "better"]
    lines = to_csv(board.pairs).splitlines()
    assert lines[2].startswith("1,1000000000000,apart,vanilla,heldout_loss,primary,,")  # no value
    interim = suite_of(stated_results(tmp_path / "left", pairs, *leaky, left=1))
    table = table_about(interim, "Comparisons")
    assert [row[verdict - 1] for row in table.rows] == ["-"] * 3
    assert [str(row[verdict])[:18] for row in table.rows] == [
        "leaky: failed audi", "not in this table:", "interim",
    ]  # fmt: skip


def test_pairs_of_sizes_are_compared_whichever_size_is_the_best(tmp_path: Path) -> None:
    runs = [
        make_record(
            f"{scheme}/{size}", router=scheme, model={"width": width}, seed=seed, loss=loss + seed / 9
        )
        for scheme, losses in {"vanilla": (4.0, 4.5), "mod": (4.4, 4.2)}.items()
        for size, width, loss in zip(("a", "b"), (32, 96), losses, strict=True)
        for seed in range(3)
    ]
    pairs = [PAIR | {"a": f"mod/{size}", "b": f"vanilla/{size}"} for size in ("a", "b")]
    board = suite_of(stated_results(tmp_path, pairs, *runs))
    assert [of["value"] for of in board.pairs_of("primary")] == pytest.approx([0.4, -0.3])


def test_equivalent_is_explained_by_the_margins_of_the_pairs() -> None:
    assert margins_in_words([("one", 0.02), ("one", 0.02), ("none", None)]) == [
        ("one", "within 0.02 nats per token"),
        ("none", ""),
    ]
    assert margins_in_words([("a", None), ("a", 0.05)]) == [("a", "within the margin of its pair")]


def test_a_pair_of_one_budget_is_the_only_test_of_a_suite_with_several(tmp_path: Path) -> None:
    pair = {"a": "mod", "b": "vanilla", "role": "primary", "budget": 2 * 10**12}
    results = stated_results(tmp_path, [pair], budgets=(10**12, 2 * 10**12))
    board = suite_of(results)
    (tested,) = board.pairs_of("primary")
    assert (tested["scheme"], tested["budget"]) == ("mod", 2 * 10**12)
    assert tested["verdict"] == "better"
    others = board.pairs[board.pairs["family"].isna()]
    assert len(others) == 5
    assert others["low"].notna().all()
    assert others["verdict"].isna().all()
    assert "no run was repeated" not in leaderboard_page(board).to_markdown()


def test_an_unfinished_suite_is_interim_and_has_no_verdicts(tmp_path: Path) -> None:
    board = suite_of(stated_results(tmp_path, [], left=1))
    page = leaderboard_page(board).to_markdown()
    assert "**Interim:** 1 of 10 runs of this suite are left, so intervals stand here without" in page
    assert "**Interim" not in page_of(stated_results(tmp_path / "done", []))
    assert board.pairs["verdict"].isna().all()
    assert board.pairs["low"].notna().all()
    assert {row["group"] for row in board.rows} == {None}
    results = page.partition("## Figures")[0]
    assert not any(word in results for word in (" better", " worse", " undecided", "| best |"))


def test_two_seeds_of_few_rows_give_no_verdict_and_the_page_says_why() -> None:
    records = [result for result in suite() if result.seed < 2]
    board = suite_of(records)
    assert str(minus_dense(board)["mod"]).endswith("(few seeds)")
    assert "fewer than three seeds" in leaderboard_page(board).to_markdown()
    assert {row["group"] for row in board.rows} == {None}
