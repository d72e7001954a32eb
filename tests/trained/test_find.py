"""Which run a name means."""

from pathlib import Path

import pytest
from trained_runs import RUNS, add_records, record_of

from modbench.errors import UserError
from modbench.records.record import Status
from modbench.trained.find import find_result


@pytest.fixture
def results(tmp_path: Path) -> Path:
    add_records(tmp_path, *(record_of(*run) for run in RUNS))
    return tmp_path


def test_a_run_is_named_by_label_or_by_the_start_of_its_key(results: Path) -> None:
    suite, result = find_result("tiny/mod", results)
    assert suite == results / "tiny"
    assert (result.label, result.run.router.name) == ("mod", "mod")
    for name, of in (
        ("tiny/mod", results),
        (f"tiny/{result.key[:8]}", results),
        *((results / "tiny" / run, None) for run in ("mod", result.key[:8])),
        *((str(results / "tiny" / run), results / "elsewhere") for run in ("mod", result.key[:8])),
    ):
        folder, again = find_result(name, of)
        assert (folder, again.label, again.record) == (suite, "mod", result.record)


def test_a_label_that_begins_another_runs_key_names_its_own_run(results: Path) -> None:
    label = record_of("mod", "mod", 0).key[:4]
    add_records(results, record_of(label, "vanilla", 0))
    assert find_result(f"tiny/{label}", results)[1].label == label


def test_a_label_with_a_shape_is_a_path_too(results: Path) -> None:
    add_records(results, record_of("mod/w48", "mod", 3), record_of("mod/w64", "mod", 4))
    for run in (results / "tiny" / "mod/w48", "tiny/mod/w48"):
        assert find_result(run, results)[1].label == "mod/w48"
    with pytest.raises(UserError, match="'tiny/mod/w46' is not known; did you mean 'tiny/mod/w"):
        find_result("tiny/mod/w46", results)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("tiny/mdo", "run 'tiny/mdo' is not known; did you mean 'tiny/mod'?"),
        ("tiny", "run 'tiny' is not known; .*known: tiny/mod, tiny/twice, tiny/vanilla"),
        ("tinny/mod", "did you mean 'tiny'?"),
        ("tiny/", "run 'tiny/' is not known; .*known: tiny/mod"),
        ("tiny/twice", "is one of 2 trained runs; name one of tiny/"),
    ],
)
def test_a_run_that_is_none_is_refused(run: str, words: str, results: Path) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        find_result(run, results)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("results/tiny/mdo", "run 'results/tiny/mdo' is not known; did you mean 'results/tiny/mod'?"),
        ("results/tinny/mod", "must be a run, .*did you mean 'results/tiny'?"),
        ("nowhere/tiny/mod", "'nowhere/tiny/mod' must be a run, .*suites known: none"),
        ("", "'' must be a run"),
    ],
)
def test_a_path_that_is_no_run_is_refused(
    run: str, words: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    add_records(results / "results", record_of("mod", "mod", 0))
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        find_result(run)


def test_runs_of_one_label_are_told_apart_by_what_differs(results: Path) -> None:
    runs = [record_of("many", "mod", 0, budgets=[budget]) for budget in (10**12, 3 * 10**12)]
    add_records(results, *runs)
    with pytest.raises(UserError) as refused:
        find_result("tiny/many", results)
    for run, budget in zip(runs, ("1e+12", "3e+12"), strict=True):
        assert f"tiny/{run.key[:8]} (budget {budget})" in str(refused.value)


def test_of_a_run_with_several_budgets_the_largest_is_meant(results: Path) -> None:
    run = record_of("several", "mod", 0, budgets=[100, 300, 900])
    add_records(results, run)
    for name in ("tiny/several", f"tiny/{run.key[:8]}"):
        _, result = find_result(name, results)
        assert (result.record, result.budget) == (run.record, 900)


@pytest.mark.parametrize("status", ["failed", "oom", "diverged"])
def test_a_run_that_failed_is_told_as_such(results: Path, status: Status) -> None:
    add_records(results, *(record_of("broken", "mod", seed, status) for seed in (5, 6)))
    add_records(results, record_of("half", "mod", 7, status), record_of("half", "mod", 8))
    words = rf"no trained model, it is recorded as {status} \(the loss is nan at step 3\)"
    with pytest.raises(UserError, match=words):
        find_result("tiny/broken", results)
    key = record_of("half", "mod", 8).key[:8]
    for run in ("tiny/half", f"tiny/{key}"):  # of two runs of a label, one was trained
        assert find_result(run, results)[1].seed == 8
