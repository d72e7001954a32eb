from dataclasses import replace

import pytest

from modbench.records.record import cell_key
from modbench.report.leaderboard.row import Value, interval, rows_of, timing_machines


def test_interval_is_students_over_seeds():
    # By hand: mean 2, standard deviation 1, t(2, 0.975) = 4.302653, half = 4.302653 / sqrt(3).
    found = interval([1.0, 2.0, 3.0])
    assert found.center == 2.0
    assert found.high - 2.0 == pytest.approx(2.484138, abs=1e-6)
    assert 2.0 - found.low == pytest.approx(2.484138, abs=1e-6)


def test_one_seed_has_no_interval():
    assert interval([4.5]) == Value(center=4.5)


def test_seeds_of_one_cell_are_one_row_and_options_are_not(fakes):
    records = [fakes.make_record("mod", seed=seed) for seed in (2, 0, 1)]
    records += [fakes.make_record("mod_half", router="mod", options={"capacity": 0.5})]
    rows = rows_of(records)
    assert [row.label for row in rows] == ["mod", "mod_half"]
    assert [record.cell["seed"] for record in rows[0].records] == [0, 1, 2]


def test_two_rows_of_one_label_are_told_apart(fakes):
    rows = rows_of([fakes.make_record("mod", options={"capacity": share}) for share in (0.1, 0.2)])
    assert len({row.label for row in rows}) == 2
    assert all(row.label.startswith("mod [") for row in rows)


def test_rows_of_one_label_that_differ_in_budget_are_told_apart_by_it(fakes):
    def rows(*cells):
        return rows_of(
            [fakes.make_record("mod", options={"k": k}, train={"budget": budget}) for k, budget in cells]
        )

    assert [row.label for row in rows((0, 10**12), (0, 3 * 10**9))] == [
        "mod [1e+12 FLOP]",
        "mod [3e+09 FLOP]",
    ]
    labels = [row.label for row in rows((0, 10**12), (0, 3 * 10**9), (1, 3 * 10**9))]
    assert len(set(labels)) == 3
    assert not any("FLOP" in label for label in labels)


def test_a_corpus_that_changed_under_one_cell_is_another_row(fakes):
    records = [fakes.make_record(seed=0), fakes.make_record(seed=1, data={"sha256": "cd" * 32})]
    assert len(rows_of(records)) == 2


def test_exact_figures_that_differ_over_seeds_are_shown_not_averaged(fakes):
    (row,) = rows_of(
        [
            fakes.make_record(seed=seed, metrics={"train_steps": steps})
            for seed, steps in ((0, 10), (1, 12))
        ]
    )
    assert row.value("train_steps") == Value(center=10, low=10, high=12)


def test_times_over_seeds_are_as_unsteady_as_the_worst(fakes):
    timed = [
        {"median": 0.1, "iqr": 0.01, "n": 12, "stable": True},
        {"median": 0.3, "iqr": 0.04, "n": 12, "stable": False},
    ]
    (row,) = rows_of(
        [
            fakes.make_record(seed=seed, metrics={"train_step_seconds": value})
            for seed, value in enumerate(timed)
        ]
    )
    assert row.value("train_step_seconds") == Value(center=0.2, iqr=0.04, n=24, stable=False)


def test_one_value_has_no_spread_and_is_not_called_stable(fakes):
    one = {"median": 5e7, "iqr": None, "n": 1, "stable": None}
    for records, n in ((1, 1), (3, 3)):
        (row,) = rows_of(
            [fakes.make_record(seed=seed, metrics={"peak_memory_bytes": one}) for seed in range(records)]
        )
        found = row.value("peak_memory_bytes")
        assert found == Value(center=5e7, iqr=None, n=n, stable=None)


def test_a_seed_of_one_value_keeps_the_others_from_being_called_stable(fakes):
    values = [
        {"median": 1.0, "iqr": None, "n": 1, "stable": None},
        {"median": 3.0, "iqr": 0.1, "n": 12, "stable": True},
    ]
    (row,) = rows_of(
        [
            fakes.make_record(seed=seed, metrics={"peak_memory_bytes": value})
            for seed, value in enumerate(values)
        ]
    )
    assert row.value("peak_memory_bytes") == Value(center=2.0, iqr=None, n=13, stable=None)


def test_quality_comes_from_finished_runs_alone(fakes):
    (row,) = rows_of(
        [
            fakes.make_record(seed=0, loss=5.0),
            fakes.make_record(seed=1, status="diverged", metrics={"heldout_loss": 99.0}),
        ]
    )
    assert row.value("heldout_loss") == Value(center=5.0)
    assert row.status == "ok 1, diverged 1"
    assert row.why_unranked == "seed 1 diverged: the loss is not finite at step 7"


def test_a_metric_that_was_not_measured_has_no_value(fakes):
    (row,) = rows_of([fakes.make_record(status="oom")])
    assert row.value("heldout_loss") is None
    assert row.value("train_steps") is None


@pytest.mark.parametrize(
    ("name", "other"),
    [
        *(("cpu", "Other CPU"), ("gpu", "Some GPU"), ("threads", 8), ("torch", "2.12.0")),
        *(("cores", 64), ("driver", "1"), ("cuda", "13.0"), ("dtype", "float64")),
        *(("deterministic", "perhaps"), ("world_size", 8)),
    ],
)
def test_machines_differ_in_any_part_that_changes_times(fakes, name, other):
    mod, vanilla = rows_of(
        [fakes.make_record("mod"), fakes.make_record("vanilla", environment={name: other})]
    )
    assert not mod.machines("train_step_seconds") & vanilla.machines("train_step_seconds")


def test_a_run_that_measured_no_time_has_no_machine_of_it(fakes):
    (row,) = rows_of([fakes.make_record("vanilla", status="failed", environment={"cpu": None})])
    assert row.machines("train_step_seconds") == set()
    assert timing_machines([row]) == {}


def test_a_loss_of_a_run_that_did_not_finish_is_no_result(fakes):
    (row,) = rows_of([fakes.make_record(status="diverged", metrics={"heldout_loss": 99.0})])
    assert row.value("heldout_loss") is None


def test_another_amount_of_heldout_text_is_another_comparison(fakes):
    record = fakes.make_record("mod")
    cell = {**record.cell, "measure": {**record.cell["measure"], "heldout_tokens": 1024}}
    rows = rows_of([record, replace(record, cell=cell, key=cell_key(cell))])
    conditions = [row.conditions("heldout_loss") for row in rows]
    assert [held["heldout_tokens"] for held in conditions] == [
        row.cell["measure"]["heldout_tokens"] for row in rows
    ]
    assert conditions[0] != conditions[1]


def test_threads_of_a_time_come_before_those_of_the_environment(fakes):
    time = {"median": 0.1, "iqr": 0.006, "n": 12, "stable": True}

    def machines(threads):
        (row,) = rows_of([fakes.make_record(metrics={"train_step_seconds": time | threads})])
        return row.machines("train_step_seconds")

    assert machines({"threads": 2}) == machines({})  # 2 by the environment
    assert machines({"threads": 1}) != machines({})


def test_an_unstable_seed_marks_its_row_even_next_to_one_that_has_a_single_value(fakes):
    values = [
        {"median": 1.0, "iqr": None, "n": 1, "stable": None, "loaded": True},
        {"median": 3.0, "iqr": 0.1, "n": 12, "stable": False},
    ]
    (row,) = rows_of(
        [
            fakes.make_record(seed=seed, metrics={"train_step_seconds": value})
            for seed, value in enumerate(values)
        ]
    )
    found = row.value("train_step_seconds")
    assert (found.stable, found.loaded, found.marks) == (False, True, "unstable, loaded")
