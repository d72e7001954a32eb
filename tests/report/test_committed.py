"""Own rows of a shipped suite, next to those that are committed."""

import pytest

from modbench.report.committed import next_to_committed
from modbench.report.table import Table
from modbench.shipped import committed_results


def rows_of(page):
    """The cells of the table of ``page`` by scheme."""
    (table,) = (part for part in page.parts if isinstance(part, Table))
    place = table.headings.index("scheme")
    return {row[place]: dict(zip(table.headings, row, strict=True)) for row in table.rows}


def test_rows_that_are_lacking_are_shown_marked_and_the_machine_is_named(tmp_path, fakes):
    plain = {"dtype": "float32"}
    losses = {"vanilla": 5.0, "mod": 4.8}
    both = [fakes.make_record(name, loss=loss, environment=plain) for name, loss in losses.items()]
    committed = fakes.store(tmp_path / "shipped", both)
    own = [fakes.make_record("mine", loss=4.9, environment={"dtype": "bfloat16"})]
    suite = fakes.suite_record([*both, *own])
    page = next_to_committed(fakes.store(tmp_path / "own", own, suite), committed)
    rows = rows_of(page)
    assert set(rows) == {"mine", "mod (committed)", "vanilla (committed)"}
    assert "-0.1" in str(rows["mine"]["minus dense (nats/token)"])
    assert "‡" in str(rows["mine"]["minus dense (nats/token)"])
    assert "precision: float32 | bfloat16" in page.to_markdown()


def test_nothing_is_shown_that_is_there_already(tmp_path, fakes):
    both = [fakes.make_record("vanilla"), fakes.make_record("mod")]
    committed = fakes.store(tmp_path / "shipped", both)
    own = fakes.store(tmp_path / "own", both)
    for folder in (committed, own):
        assert next_to_committed(folder, committed).parts == []


@pytest.mark.parametrize(
    "setting",
    [
        {"train": {"batch": 4}},
        {"train": {"budget": 3 * 10**12}},
        {"model": {"layers": 2}},
        {"seed": 1},
        {"measure": {"heldout_tokens": 64}},
    ],
    ids=str,
)
def test_committed_rows_of_another_setting_are_not_shown(tmp_path, fakes, setting):
    committed = fakes.store(tmp_path / "shipped", [fakes.make_record("vanilla")])
    other = [fakes.make_record("vanilla", **setting), fakes.make_record("mine", **setting)]
    own = fakes.store(tmp_path / "own", other[1:], fakes.suite_record(other))
    assert next_to_committed(own, committed).parts == []


def test_runs_of_an_earlier_setting_are_not_shown_next_to_committed_rows(tmp_path, fakes):
    vanilla, mine = fakes.make_record("vanilla"), fakes.make_record("mine")
    committed = fakes.store(tmp_path / "shipped", [vanilla])
    early = fakes.make_record("early", train={"batch": 4})
    suites = [
        fakes.suite_record([early], finished="2026-01-01T00:15:00+00:00"),
        fakes.suite_record([vanilla, mine]),
    ]
    page = next_to_committed(fakes.store(tmp_path / "own", [early, mine], *suites), committed)
    assert set(rows_of(page)) == {"mine", "vanilla (committed)"}


def test_the_committed_results_of_quick_are_found():
    folder = committed_results("quick")
    assert folder is not None
    assert any((folder / "records").glob("*.jsonl"))
    assert committed_results("nothing") is None
