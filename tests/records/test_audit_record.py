"""The audit of a scheme as a record of its own, and the rows that read it."""

import csv
import io
import json

import pytest
from made_up_records import replace

from modbench.errors import UserError
from modbench.records.record import AuditRecord, key_of, read_record
from modbench.records.store import append_record, read_suite
from modbench.report.leaderboard import leaderboard_page
from modbench.report.suite import suite_of
from modbench.report.table import to_csv
from modbench.report.write import write_report

PROBES = {1: "causal", 2: "batch-invariant", 3: "decode parity", 9: "count", 10: "state"}


def finding(probe, verdict="passed", figure="0"):
    name = PROBES[probe]
    return {"probe": probe, "name": name, "verdict": verdict, "figure": figure, "ranks": probe != 10}


def make_audit(name="mod", *, failed=(), torch="2.13.0", finished="2026-01-01T00:01:00+00:00", **fields):
    scheme = {
        "router": {"name": name, "options": {}, "code_sha256": "ab" * 32},
        "model": {"width": 128},
        "shapes": [[3, 63], [16, 256]],
        "trained": [8, 256],
        "torch": torch,
        "modbench": "0.1.0",
        "device": "cpu",
    }
    arguments = {
        "scheme": scheme,
        "key": key_of(scheme),
        "code": {"version": "0.1.0", "commit": None, "dirty": None},
        "environment": {"cpu": "Imaginary CPU", "gpu": None, "threads": 1, "torch": torch},
        "audit": [
            finding(probe, "failed", "by 0.7") if probe in failed else finding(probe) for probe in PROBES
        ],
        "started": "2026-01-01T00:00:00+00:00",
        "finished": finished,
    }
    return AuditRecord.made(**{**arguments, **fields})


def runs(fakes, audit, *, own=(), label="mod", seeds=(0,), **changes):
    """Results that refer to ``audit``; a run checks its trained weights and counts its steps."""
    checks = [next((f for f in own if f["probe"] == probe), finding(probe)) for probe in (1, 9)]
    return [
        fakes.make_record(label, seed=seed, audit=checks, audit_key=audit.key, **changes)
        for seed in seeds
    ]


def board_with(records, *audits):
    return suite_of(records, audits={audit.key: audit for audit in audits})


def test_records_and_audits_share_a_folder_and_are_read_apart(tmp_path, fakes):
    audit = make_audit()
    records = runs(fakes, audit, seeds=(0, 1))
    lines = (records[0].record, audit, records[1].record)
    paths = [append_record(tmp_path, line) for line in lines]
    assert json.loads(paths[1].read_text())["kind"] == "audit"
    found = read_suite(tmp_path)
    assert found.audits == {audit.key: audit}
    assert sorted(record.what.seed for record in found.runs) == [0, 1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"key": "0" * 16}, "key is '0000000000000000' but its scheme's key is"),
        ({"audit": [{"probe": 1}]}, r"audit\[0\].name is missing"),
    ],
)
def test_a_wrong_field_of_an_audit_is_named(change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(make_audit(), **change)


def test_fields_that_a_run_may_lack_are_absent_from_its_line(fakes):
    old = fakes.make_record().record
    optional = {"audit_key", "flops_source", "left_behind", "workers", "seconds"}
    assert optional.isdisjoint(json.loads(old.line()))
    assert read_record(old.line()).audit_key is None
    new = fakes.make_record(audit_key="0" * 16, flops_source="counted").record
    assert read_record(new.line()) == new


def test_of_two_audits_of_one_scheme_the_one_finished_last_counts(tmp_path):
    first = make_audit(failed=(2,))
    second = make_audit(finished="2026-01-01T00:02:00+00:00")
    for number, order in enumerate(([second, first], [first, second])):
        for audit in order:
            append_record(tmp_path / str(number), audit)
        assert read_suite(tmp_path / str(number)).audits == {first.key: second}


def test_seeds_share_the_audit_of_their_scheme(fakes):
    audit = make_audit()
    (row,) = board_with(runs(fakes, audit, seeds=(0, 1, 2)), audit).rows
    assert (row["position"], row["audit"], row["note"]) == (1, "passed 5", None)


@pytest.mark.parametrize("probe", [1, 2, 3, 9])
def test_a_scheme_that_fails_a_ranking_probe_is_not_ranked(fakes, probe):
    audit = make_audit(failed=(probe,))
    (row,) = board_with(runs(fakes, audit), audit).rows
    assert row["position"] is None
    assert row["note"] == f"failed audit probe {probe} {PROBES[probe]} (by 0.7)"
    assert row["audit"] == f"failed {probe} {PROBES[probe]}"


def test_a_scheme_that_fails_another_probe_is_ranked_with_a_note(fakes):
    audit = make_audit(failed=(10,))
    (row,) = board_with(runs(fakes, audit), audit).rows
    assert (row["position"], row["note"]) == (1, "failed audit probe 10 state (by 0.7)")


@pytest.mark.parametrize("probe", [1, 9])
def test_one_run_that_fails_its_own_check_keeps_its_row_out_of_the_ranking(fakes, probe):
    audit = make_audit()
    own = [finding(probe, "failed", "trained weights: 12 positions")]
    records = runs(fakes, audit) + runs(fakes, audit, seeds=(1,), own=own)
    (row,) = board_with(records, audit).rows
    assert row["position"] is None
    assert row["note"] == f"failed audit probe {probe} {PROBES[probe]} (trained weights: 12 positions)"


def test_training_steps_that_could_not_be_counted_do_not_hide_the_audit(fakes):
    audit = make_audit()
    own = [finding(9, "not asked", "2 training steps were not counted, for want of memory")]
    (row,) = board_with(runs(fakes, audit, own=own), audit).rows
    assert (row["position"], row["audit"]) == (1, "passed 5")


def test_a_run_whose_audit_is_missing_is_not_ranked(fakes):
    audit, other = make_audit(), make_audit("vanilla")
    records = runs(fakes, audit) + runs(fakes, other, label="vanilla")
    entries = {row["row"]: row for row in board_with(records, other).rows}
    assert entries["vanilla"]["position"] == 1
    assert (entries["mod"]["position"], entries["mod"]["note"]) == (None, "audit was not run")
    assert entries["mod"]["audit"] == "not run"


def test_a_report_reads_audits_from_the_records_folder(tmp_path, fakes):
    audit = make_audit()
    append_record(tmp_path, audit)
    fakes.store(tmp_path, runs(fakes, audit))
    write_report(tmp_path)
    (line,) = csv.DictReader((tmp_path / "leaderboard.csv").read_text().splitlines())
    assert (line["position"], line["audit"]) == ("1", "passed 5")


def test_a_suite_without_a_finished_run_is_no_error(tmp_path):
    append_record(tmp_path, make_audit())
    said = []
    assert write_report(tmp_path, say=said.append).paths == []
    assert said == [f"{tmp_path}: no run has finished yet; there is nothing to report"]


def test_how_flops_were_found_is_a_column(fakes):
    sources = {"a": "closed form", "b": "counted", "old": None}
    board = suite_of(
        [fakes.make_record(label, flops_source=source) for label, source in sources.items()]
    )
    page = leaderboard_page(board).to_markdown()
    for label, source in sources.items():
        lines = [line for line in page.splitlines() if line.startswith(f"| {label} |")]
        assert any(line.endswith(f" | {source or '-'} |") for line in lines[1:])
    table = csv.DictReader(io.StringIO(to_csv(board.schemes)))
    assert {line["label"]: line["flops_source"] or None for line in table} == sources


@pytest.mark.parametrize(
    ("name", "realised", "nominal", "note"),
    [
        ("", 0.31, 0.125, "causal rule selects 0.31 of tokens, nominal 0.125"),
        ("", 0.0747, 0.125, "causal rule selects 0.0747 of tokens, nominal 0.125"),
        ("", 0.0, 0.125, "causal rule selects 0 of tokens, nominal 0.125"),
        ("", 0.18, 0.125, ""),
        ("", 0.09, 0.125, ""),
        ("expert_", 3.2, 2.0, "causal rule selects 3.2 experts per token, nominal 2"),
        ("expert_", 1.6, 2.0, ""),
    ],
)
def test_a_causal_rule_far_from_its_nominal_capacity_is_marked(fakes, name, realised, nominal, note):
    metrics = {f"{name}realised_capacity": realised, f"{name}nominal_capacity": nominal}
    records = [fakes.make_record("mod", metrics=metrics), fakes.make_record("vanilla")]
    board = suite_of(records)
    notes = {row["row"]: row["note"] for row in board.rows}
    assert notes == {"mod": note or None, "vanilla": None}
    page = leaderboard_page(board).to_markdown()
    assert (f"- **mod**: {note}\n" in page) == bool(note)
