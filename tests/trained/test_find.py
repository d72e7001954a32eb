"""Which run a name means."""

from pathlib import Path

import pytest
from trained_runs import RUNS, add_records, record_of

from modbench.errors import UserError
from modbench.records.record import Status
from modbench.trained.load import find_result


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


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("tiny/mdo", "run 'tiny/mdo' is not known; did you mean 'tiny/mod'?"),
        ("tinny/mod", "did you mean 'tiny'?"),
    ],
)
def test_a_run_that_is_none_is_refused(run: str, words: str, results: Path) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        find_result(run, results)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("results/tiny/mdo", "run 'results/tiny/mdo' is not known; did you mean 'results/tiny/mod'?"),
        ("nowhere/tiny/mod", "'nowhere/tiny/mod' is no folder with .*; known: tiny"),
        ("results/tinny/mod", "did you mean 'results/tiny'?"),
    ],
)
def test_a_path_that_is_no_run_is_refused(
    run: str, words: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results)
    add_records(results / "results", record_of("mod", "mod", 0))
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        find_result(run)


def test_runs_of_one_label_are_named_by_what_differs(results: Path) -> None:
    budgets = (10**11, 3 * 10**11, 12_345_678_901)
    runs = [record_of("many", "mod", seed, budget=budget) for budget in budgets for seed in (0, 1)]
    add_records(results, *runs)
    names = [
        f"tiny/many@{budget}#{seed}" for budget in ("1e11", "3e11", "12345678901") for seed in (0, 1)
    ]
    for run, name in zip(runs, names, strict=True):
        assert find_result(name, results)[1].record == run.record
        assert find_result(f"{results}/{name}")[1].record == run.record
    for asked in ("tiny/many", "tiny/many#0"):
        with pytest.raises(UserError) as refused:
            find_result(asked, results)
        shown = str(refused.value).partition("name one of ")[2].split(", ")
        assert set(shown) == {name for name in names if asked == "tiny/many" or name.endswith("#0")}
    with pytest.raises(UserError, match="'tiny/many@2e11#0' is not known; did you mean 'tiny/many@"):
        find_result("tiny/many@2e11#0", results)


def test_of_several_seeds_the_first_is_meant_and_named(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_result("tiny/twice", results)[1].seed == 1
    said = capsys.readouterr().err
    assert "seed 1" in said
    assert "tiny/twice#2" in said


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
