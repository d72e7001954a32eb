"""Own rows of a shipped suite, next to those that are committed."""

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
    page = next_to_committed(fakes.store(tmp_path / "own", own), committed)
    rows = rows_of(page)
    assert set(rows) == {"mine", "mod (committed)", "vanilla (committed)"}
    assert "-0.1" in str(rows["mine"]["minus dense (nats/token)"])
    assert "‡" in str(rows["mine"]["minus dense (nats/token)"])
    assert "precision: float32 | bfloat16" in page.to_markdown()


def test_nothing_is_shown_that_is_there_already_or_can_not_be_compared(tmp_path, fakes):
    both = [fakes.make_record("vanilla"), fakes.make_record("mod")]
    committed = fakes.store(tmp_path / "shipped", both)
    own = fakes.store(tmp_path / "own", both)
    other = fakes.store(tmp_path / "other", [fakes.make_record("mine", train={"budget": 3 * 10**12})])
    for folder in (committed, own, other):
        assert next_to_committed(folder, committed).parts == []


def test_the_committed_results_of_quick_are_found():
    folder = committed_results("quick")
    assert folder is not None
    assert any((folder / "records").glob("*.jsonl"))
    assert committed_results("nothing") is None
