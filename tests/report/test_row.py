import pytest
from made_up_records import replace

from modbench.report.schemes import conditions
from modbench.report.suite import suite_of


def rows_from(results):
    return sorted(suite_of(results).rows, key=lambda row: row["row"])


def test_interval_is_students_over_seeds(fakes):
    # By hand: mean 2, standard deviation 1, t(2, 0.975) = 4.302653, half = 4.302653 / sqrt(3).
    (row,) = rows_from([fakes.make_record(seed=seed, loss=seed + 1.0) for seed in range(3)])
    assert row["heldout_loss"] == 2.0
    assert row["heldout_loss_high"] - 2.0 == pytest.approx(2.484138, abs=1e-6)
    assert 2.0 - row["heldout_loss_low"] == pytest.approx(2.484138, abs=1e-6)


def test_seeds_of_one_run_are_one_row_and_options_are_not(fakes):
    records = [fakes.make_record("mod", seed=seed) for seed in (2, 0, 1)]
    records += [fakes.make_record("mod_half", router="mod", options={"capacity": 0.5})]
    of_row = suite_of(records).of_row
    assert {row: [result.seed for result in of] for row, of in of_row.items()} == {
        "mod": [0, 1, 2],
        "mod_half": [0],
    }


def test_two_rows_of_one_label_are_told_apart(fakes):
    rows = rows_from([fakes.make_record("mod", options={"capacity": share}) for share in (0.1, 0.2)])
    assert len({row["row"] for row in rows}) == 2
    assert all(row["row"].startswith("mod [") for row in rows)


def test_rows_of_one_label_that_differ_in_budget_are_told_apart_by_it(fakes):
    def rows(*runs):
        return rows_from(
            [fakes.make_record("mod", options={"k": k}, train={"budget": budget}) for k, budget in runs]
        )

    assert [row["row"] for row in rows((0, 10**12), (0, 3 * 10**9))] == [
        "mod [1e+12 FLOP]",
        "mod [3e+09 FLOP]",
    ]
    labels = [row["row"] for row in rows((0, 10**12), (0, 3 * 10**9), (1, 3 * 10**9))]
    assert len(set(labels)) == 3
    assert not any("FLOP" in label for label in labels)


def test_a_corpus_that_changed_under_one_run_is_another_row(fakes):
    records = [fakes.make_record(seed=0), fakes.make_record(seed=1, data={"sha256": "cd" * 32})]
    assert len(rows_from(records)) == 2


def test_exact_figures_that_differ_over_seeds_are_shown_not_averaged(fakes):
    (row,) = rows_from(
        [
            fakes.make_record(seed=seed, metrics={"train_steps": steps})
            for seed, steps in ((0, 10), (1, 12))
        ]
    )
    assert row["train_steps"] == "10..12"


def test_quality_comes_from_finished_runs_alone(fakes):
    lost = fakes.make_record(seed=1, loss=99.0)
    heldout, task = lost.measurements
    broken = replace(heldout, result={}, status="failed", error="it broke")
    lost = replace(lost, measurements=(broken, task))
    (row,) = rows_from([fakes.make_record(seed=0, loss=5.0), lost])
    assert (row["heldout_loss"], row["heldout_loss_low"]) == (5.0, None)
    assert row["status"] == "ok 1, failed 1"
    assert row["barred"] == "seed 1 failed: it broke"
    (alone,) = rows_from([lost])
    assert alone["heldout_loss"] is None


def test_a_task_that_failed_is_a_remark_on_its_row(fakes):
    scored = fakes.make_record(loss=5.0)
    heldout, task = scored.measurements
    broken = replace(task, result={}, status="failed", error="it broke")
    (row,) = rows_from([replace(scored, measurements=(heldout, broken))])
    assert (row["status"], row["heldout_loss"]) == ("ok", 5.0)
    assert row["note"].endswith(f"not scored: {task.measurement.settings['task']} failed")


def test_another_amount_of_heldout_text_is_another_comparison(fakes):
    records = [fakes.make_record("mod"), fakes.make_record("half", measure={"heldout_tokens": 1024})]
    records.append(fakes.make_record("lost", status="diverged"))  # nothing was measured on its weights
    held = {record.label: conditions(record) for record in records}
    assert len(suite_of(records).comparisons) == 2
    assert {label: of["heldout_tokens"] for label, of in held.items()} == {
        "half": 1024,
        "lost": 65_536,
        "mod": 65_536,
    }
    assert held["lost"] == held["mod"]
