"""The report of an isoFLOP suite with curves of several depths, from made-up records of known curves."""

from collections.abc import Mapping
from dataclasses import replace
from math import log

from isoflop_made_up import BUDGETS, Make, analysed, curve_loss, run, sweep_records, table_under

from modbench.records.result import Result
from modbench.report.isoflop.page import isoflop_page
from modbench.report.isoflop.source import IsoFlopSuite
from modbench.report.table import Table

#: How much higher the loss of a scheme is at each depth than at its best one, in nats.
LOSSES = {"vanilla": {2: 0.0, 4: 0.1, 8: 0.3}, "mod": {2: 0.5, 4: 0.0, 8: 0.2}}
MIDDLE = "3e+12 training FLOPs"


def records(
    make: Make, losses: Mapping[str, Mapping[int, float]] = LOSSES, edge: tuple[str, int] | None = None
) -> list[Result]:
    """Sweeps of schemes and depths; the loss of ``edge`` falls up to the largest size."""

    def curve(scheme: str, depth: int, more: float, width: int, budget: int) -> float:
        falling = -0.5 * log(width / 64) if (scheme, depth) == edge else 0.0
        return curve_loss(scheme, width, budget) + more + falling

    return [
        record
        for scheme, depths in losses.items()
        for depth, more in depths.items()
        for record in sweep_records(
            make, scheme, lambda w, b, at=(scheme, depth, more): curve(*at, w, b), depth=depth
        )
    ]


#: Curves of `records` that were analysed, by their edge.
_ANALYSED: dict[tuple[str, int] | None, IsoFlopSuite] = {}


def deep(make: Make, edge: tuple[str, int] | None = None) -> IsoFlopSuite:
    """The curves of `records`, analysed once for all tests."""
    if edge not in _ANALYSED:
        _ANALYSED[edge] = analysed(records(make, edge=edge))
    return _ANALYSED[edge]


def depth_rows(sweep: IsoFlopSuite, budget: str = "3e+12") -> dict[tuple[str, str], list[str]]:
    """The rows of the table of all depths by scheme and depth."""
    caption = f"Optima at each depth, {budget} training FLOPs"
    tables = [part for part in isoflop_page(sweep).parts if isinstance(part, Table)]
    table = next(table for table in tables if table.caption == caption)
    return {(str(row[0]), str(row[1])): [str(cell) for cell in row] for row in table.rows}


def test_the_pairs_that_a_suite_states_come_first_whether_they_can_be_compared_or_not(
    make: Make,
) -> None:
    pair = {"a": "mod", "b": "vanilla", "role": "primary", "budget": BUDGETS[1], "margin": 0.02}
    pairs = [pair, pair | {"role": "secondary", "depth": 2}, pair | {"role": "secondary", "depth": 4}]

    def shown(**state: object) -> Table:
        found = records(make, edge=("vanilla", 2))
        stated = [replace(of, suite={**of.suite, "compare": pairs, **state}) for of in found]
        return next(part for part in isoflop_page(analysed(stated)).parts if isinstance(part, Table))

    table = shown()
    columns = [table.headings.index(name) for name in ("role", "layers", "adjusted p", "verdict")]
    first, second, third = ([str(row[column]) for column in columns] for row in table.rows)
    assert (first[:2], first[3]) == (["primary", "best"], "better")
    assert second == ["secondary", "2", "-", "no optimum: vanilla"]
    assert (third[:2], third[3]) == (["secondary", "4"], "better")
    left = shown(left=1, wanted=90).rows
    assert [[row[column] for column in columns[2:]] for row in left] == [["-", "interim"]] * 3


def test_each_scheme_is_ranked_at_its_best_depth(make: Make) -> None:
    page = isoflop_page(deep(make))
    first, second = table_under(page, MIDDLE)
    assert first[:3] == ["best", "mod", "4 (100 %)"]
    assert second[:3] == ["worse than best", "vanilla", "2 (100 %)"]
    assert first[5].startswith("-0.3")  # 3.7 at four layers minus 4.0 at two
    assert first[5].endswith("better")
    assert "each at its own best size and depth (of 2, 4, 8 layers)" in page.to_markdown()


def test_schemes_are_compared_at_equal_depth_too(make: Make) -> None:
    rows = depth_rows(deep(make))
    minus = {depth: rows["mod", depth][4] for depth in ("2", "4", "8")}
    assert minus["2"].startswith("+0.2")  # .5 - .3
    assert minus["2"].endswith("worse")
    assert minus["4"].startswith("-0.4")
    assert minus["8"].startswith("-0.4")
    assert minus["8"].endswith("better")
    assert rows["vanilla", "2"][4] == "-"


def test_depth_at_an_edge_of_its_sizes_is_no_candidate(make: Make) -> None:
    sweep = deep(make, ("mod", 8))
    assert depth_rows(sweep)["mod", "8"][-1] == "edge-high; no candidate for the best depth"
    assert depth_rows(sweep)["mod", "8"][3:5] == ["-", "-"]
    mod = next(row for row in table_under(isoflop_page(sweep), MIDDLE) if row[1] == "mod")
    assert mod[2].startswith("4 (")
    # Four layers is the largest of those with an optimum, not of those that were tried.
    assert mod[-1].startswith("interior; no candidate: 8 layers edge-high; ")
    assert mod[-1].endswith("largest depth with an interior optimum")


def test_scheme_whose_rate_at_its_best_depth_is_at_the_edge_is_not_ranked(make: Make) -> None:
    plan = {"learning_rates": [0.005, 0.01, 0.02], "extensions": 0}
    edge = [run(make, "mod", 64, BUDGETS[1], depth=4, plan=plan, rate=0.02, loss=4.5)]
    edge += sweep_records(make, "mod", lambda w, b: curve_loss("mod", w, b), depth=4, plan=plan)
    others = records(make, {"vanilla": LOSSES["vanilla"], "mod": {8: 0.2}})
    page = isoflop_page(analysed([*others, *edge]))
    mod = next(row for row in table_under(page, MIDDLE) if row[1] == "mod")
    assert mod[0] == "not ranked"
    assert "learning rate: edge" in mod[-1]
    assert "Not ranked: mod at 4 layers." in page.to_markdown()
