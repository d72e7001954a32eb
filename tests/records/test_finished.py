"""The finished records of a suite, told by a few fields of each."""

from isoflop_made_up import PLAN
from test_audit_record import make_audit
from timings_made_up import make_case, timed

from modbench.records.finished import Finished, finished
from modbench.records.store import append_record


def some_of_each_kind(fakes):
    result = fakes.make_record(audit_key="ab" * 8, workers=2)
    timing = timed("mod", make_case(), repetition=2)
    suite = fakes.suite_record([result])
    return result.record, *result.measurements, make_audit(), timing, suite


def test_what_is_finished_is_told_of_each_kind_of_record(tmp_path, fakes):
    records = some_of_each_kind(fakes)
    for record in records:
        append_record(tmp_path, record)
    run, heldout, task, audit, timing, suite = records
    text = run.data["sha256"]

    def entry(record, **fields):
        return Finished(kind=record.kind, key=record.key, finished=record.finished, **fields)

    told = sorted(finished(tmp_path), key=lambda entry: (entry.kind, entry.measures))
    measured = {"status": "ok", "run": run.key}
    assert told == [
        entry(audit),
        entry(task, measures="downstream", **measured),
        entry(heldout, measures="heldout", loss=5.0, **measured),
        entry(run, status="ok", audit_key="ab" * 8, text=text),
        entry(suite),
        entry(timing, status="ok", session="session-1", measures="training", repetition=2),
    ]


def test_the_plan_of_learning_rates_is_told_from_the_record_of_a_suite(tmp_path, make, fakes):
    append_record(tmp_path, fakes.suite_record([make("mod", model_width=32)]))
    (told,) = finished(tmp_path)
    assert (told.exponents, told.margin) == (((None, PLAN["exponent"]),), PLAN["margin"])
