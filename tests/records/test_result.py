"""Joins of runs with what was measured on their weights, and with the rows that name them."""

from made_up_records import replace

from modbench.records.line import as_json, key_of
from modbench.records.result import results_of
from modbench.records.store import append_record, read_suite

EARLY, LATE = "2026-01-01T01:00:00+00:00", "2026-01-01T02:00:00+00:00"


def joined(folder, *records):
    for record in records:
        append_record(folder, record)
    return results_of(read_suite(folder))


def with_settings(measurement, loss, **settings):
    """``measurement`` with other settings and another loss."""
    subject = as_json(measurement.measurement)
    subject = subject | {"settings": subject["settings"] | settings}
    return replace(
        measurement,
        measurement=subject,
        key=key_of(subject),
        result={"metrics": {"heldout_loss": loss}},
    )


def suite_of(fakes, *results, finished=LATE, **wanted):
    """The record of a suite of ``results`` that wanted other settings."""
    record = fakes.suite_record([*results], finished)
    suite = as_json(record.suite)
    suite["wanted"] |= wanted
    return replace(record, suite=suite, key=key_of(suite))


def test_a_result_has_the_metrics_of_its_run_its_end_and_its_measurements(tmp_path, fakes):
    layers = [{"layer": 1, "added": 0.5}]
    made = fakes.make_record("mod", loss=4.5, routing=fakes.make_routing(), layers=layers, seed=3)
    (result,) = joined(tmp_path, made.record, *made.measurements, fakes.suite_record([made]))
    assert result.metrics == made.metrics
    names = ("heldout_loss", "parameters", "train_steps", "train_flops", "modbench_cloze")
    assert set(names) <= result.metrics.keys()
    assert (result.routing, result.layers) == (made.routing, made.layers)
    assert (result.label, result.scheme, result.seed, result.status) == ("mod", "mod", 3, "ok")
    named = {name: result.suite[name] for name in ("name", "version")}
    assert named == {"name": "fake", "version": 1}
    assert [finding.probe for finding in result.audit] == [1, 2, 3, 5, 9]


def test_of_measurements_with_several_settings_those_that_the_suite_wants_count(tmp_path, fakes):
    made = fakes.make_record(loss=5.0)
    wanted, task = made.measurements
    few = replace(with_settings(wanted, 9.0, heldout_tokens=16), finished=LATE)
    suite = suite_of(fakes, made, heldout=wanted.measurement.settings)
    records = (made.record, wanted, few, task)
    (result,) = joined(tmp_path / "wanted", *records, suite)
    assert result.metrics["heldout_loss"] == 5.0
    assert result.settings["heldout"]["heldout_tokens"] == 65_536
    suite = suite_of(fakes, made, heldout=few.measurement.settings)
    (result,) = joined(tmp_path / "other", *records, suite)
    assert result.metrics["heldout_loss"] == 9.0
    (result,) = joined(tmp_path / "none", *records, suite_of(fakes, made, heldout={}))
    assert result.metrics["heldout_loss"] == 9.0  # none is wanted: the newest


def test_a_measurement_that_failed_takes_no_loss_from_a_row(tmp_path, fakes):
    """Neither a task that was killed, nor another amount of held-out text."""
    made = fakes.make_record(loss=5.0)
    heldout, task = made.measurements
    lost = {"status": "failed", "error": "killed", "result": {}, "finished": LATE}
    killed = replace(task, **lost)
    few = replace(with_settings(heldout, 9.0, heldout_tokens=16), **lost)
    (result,) = joined(tmp_path / "task", made.record, heldout, killed, fakes.suite_record([made]))
    assert (result.status, result.metrics["heldout_loss"]) == ("ok", 5.0)
    assert result.lost == [f"{task.measurement.settings['task']} failed"]
    suite = suite_of(fakes, made, heldout=few.measurement.settings)
    (result,) = joined(tmp_path / "heldout", made.record, heldout, few, task, suite)
    assert (result.status, result.metrics["heldout_loss"]) == ("ok", 5.0)
    (result,) = joined(tmp_path / "none", made.record, few, task, suite)
    assert result.status == "failed"


def test_of_a_task_scored_twice_the_wanted_settings_count(tmp_path, fakes):
    made = fakes.make_record()
    heldout, task = made.measurements
    limited = with_settings(task, 1.0, limit=4)
    limited = replace(limited, result={"metrics": {"modbench_cloze": 1.0}}, finished=LATE)
    for wanted, expected in ((task, 0.4), (limited, 1.0)):
        suite = suite_of(fakes, made, downstream=[wanted.measurement.settings])
        folder = tmp_path / str(expected)
        (result,) = joined(folder, made.record, heldout, task, limited, suite)
        assert result.metrics["modbench_cloze"] == expected
        assert result.settings["downstream"] == {"modbench_cloze": wanted.measurement.settings}


def test_tasks_are_in_the_order_of_the_suite(tmp_path, fakes):
    names = ["zebra", "apple", "modbench_cloze"]
    score = {"metrics": {}, "items": 1, "few_shot": 0, "version": "1.0", "rule": "causal"}
    score |= {"answer_bits_per_byte": None, "answer_margin": None, "truncated": 0, "tokens": 1}
    score |= {"sha256": None}
    downstream = {name: score | {"part_of": name} for name in names[:2]}
    made = fakes.make_record(downstream=downstream, measure={"downstream": names})
    (result,) = joined(tmp_path, made.record, *made.measurements, fakes.suite_record([made]))
    assert list(result.settings["downstream"]) == names
    assert list(result.downstream) == names[:2]


def test_of_reruns_one_that_is_ok_counts_and_then_the_newest(tmp_path, fakes):
    first, second = (
        fakes.make_record(finished=time, loss=loss) for time, loss in ((EARLY, 5.0), (LATE, 4.0))
    )
    failed = fakes.make_record(status="failed", finished="2026-01-01T03:00:00+00:00")
    lost = replace(second.measurements[0], status="failed", error="no weights", result={})
    lost = replace(lost, finished="2026-01-01T03:00:00+00:00")
    records = [r.record for r in (first, second, failed)]
    records += [*first.measurements, *second.measurements, lost, fakes.suite_record([first])]
    (result,) = joined(tmp_path, *records)
    assert result.record == second.record
    assert (result.status, result.metrics["heldout_loss"]) == ("ok", 4.0)


def test_a_run_is_shown_under_the_label_of_the_newest_suite_that_names_it(tmp_path, fakes):
    one, other = fakes.make_record("mod"), fakes.make_record("vanilla")
    renamed = replace(one, label="renamed")
    newer, older = fakes.suite_record([renamed], LATE), fakes.suite_record([one, other], EARLY)
    results = joined(tmp_path, one.record, other.record, newer, older)
    assert [result.label for result in results] == ["renamed", "vanilla"]
    assert results[0].key == one.key


def test_two_rows_of_a_suite_may_share_a_run(tmp_path, fakes):
    one = fakes.make_record("mod")
    suite = fakes.suite_record([one, replace(one, label="the same")])
    results = joined(tmp_path, one.record, *one.measurements, suite)
    assert [result.label for result in results] == ["mod", "the same"]
    assert results[0].metrics == results[1].metrics == one.metrics


def test_a_run_that_no_suite_names_has_the_name_of_its_router(tmp_path, fakes):
    (result,) = joined(tmp_path, fakes.make_record("mine", router="mod").record)
    assert (result.label, result.suite["name"]) == ("mod", "unnamed")


def test_a_measurement_that_failed_is_the_status_of_its_result(tmp_path, fakes):
    made = fakes.make_record()
    lost = replace(made.measurements[0], status="oom", error="out of memory", result={})
    (result,) = joined(tmp_path, made.record, lost, fakes.suite_record([made]))
    assert (result.status, result.error) == ("oom", "out of memory")


def test_records_of_several_budgets_and_of_sharded_weights_are_read(tmp_path, fakes):
    """As runs were recorded until November 2026; no suite can state either now."""
    record = fakes.make_record("mod", train={"parallel": {"shard": 2, "data": 1}}).record
    run = record.run | {"schedule": dict(record.run["schedule"])}
    budget = run["schedule"]["budgets"][0]
    small = budget // 3
    end, point = as_json(record.ends[0]), as_json(record.curve[-1])
    run["schedule"] |= {"kind": "trapezoid", "budgets": [small, budget], "decay": 0.2}
    old = replace(
        record,
        run=run,
        key=key_of(run),
        ends=[end | {"budget": small}, end],
        curve=[point, point | {"decay": small}, point | {"decay": budget}],
        left_behind=0,
    )
    (result,) = joined(tmp_path, old)
    assert result.budget == budget
    assert result.record.what.train.ranks == 2
    assert [point.decay for point in result.curve] == [None, budget]
