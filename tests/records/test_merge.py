"""modbench merge: the records of several machines in one folder."""

import pytest
from made_up_records import replace

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.merge import merge
from modbench.records.store import append_record, read_suite
from modbench.report.page import write_report


@pytest.fixture
def machines(tmp_path, fakes):
    """Two results folders of one suite with a run in common, which came out differently."""

    def make(name, cpu, loss, labels):
        runs = [
            fakes.make_record(label, loss=loss, environment={"cpu": cpu}) for label in ("mod", *labels)
        ]
        fakes.store(tmp_path / name / "fake", runs)
        return tmp_path / name

    return make("one", "CPU A", 4.8, ["vanilla"]), make("two", "CPU B", 4.9, ["extra"])


def test_all_records_are_joined_and_what_contradicts_is_named(machines, tmp_path):
    (merged,) = merge(machines, tmp_path / "joined")
    keys = [{run.key for run in read_suite(folder / "fake").runs} for folder in machines]
    joined = read_suite(tmp_path / "joined" / "fake")
    assert {run.key for run in joined.runs} == keys[0] | keys[1]
    assert len(keys[0] | keys[1]) == 3
    conflict = next(of for of in merged.conflicts if "measured (heldout)" in of)
    assert "mod#0 was measured (heldout) 2 times with other results (on CPU A; CPU B)" in conflict


def test_labels_are_those_of_the_suite_with_the_largest_number(machines, tmp_path, fakes):
    """Whatever the clocks of its writers said."""
    run = fakes.make_record("mod")
    named = fakes.suite_record([replace(run, label="renamed")], "2025-01-01T00:00:00+00:00")
    renamed = replace(named, number=1)
    append_record(machines[1] / "fake", renamed)
    (merged,) = merge(machines, tmp_path / "joined")
    assert any("renamed#0 was measured" in conflict for conflict in merged.conflicts)


def test_equal_records_are_no_conflict_and_are_not_added_twice(machines, tmp_path):
    (first,) = merge([machines[0], machines[0] / "fake"], tmp_path / "joined")
    (again,) = merge([machines[0]], tmp_path / "joined")
    assert (first.added > 0, again.added) == (True, 0)
    assert list(first.conflicts) == list(again.conflicts) == []


def test_the_report_of_joined_records_does_not_depend_on_their_order(machines, tmp_path):
    tables = []
    for name, folders in (("here", machines), ("there", machines[::-1])):
        merge(folders, tmp_path / name)
        write_report(tmp_path / name / "fake")
        tables.append((tmp_path / name / "fake" / "leaderboard.csv").read_bytes())
    assert tables[0] == tables[1]
    assert b"extra" in tables[0]
    assert b"vanilla" in tables[0]


def test_nothing_is_written_if_a_folder_is_damaged(machines, tmp_path, capsys):
    file = next((machines[1] / "fake" / "records").glob("*.jsonl"))
    file.write_text(file.read_text().replace("4.9", "4.1").replace("B", "C"))
    with pytest.raises(UserError, match="no valid record"):
        merge(machines, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    (tmp_path / "nothing").mkdir()
    assert main(["merge", str(tmp_path / "nothing")]) == 2
    assert "holds no records" in capsys.readouterr().err
