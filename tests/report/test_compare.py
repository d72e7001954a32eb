"""modbench compare: two results folders, or two rows of them."""

import re
from pathlib import Path

import pytest

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.named import named
from modbench.records.result import results_of
from modbench.records.store import read_suite
from modbench.report.compare import Comparison
from modbench.report.suite import suite_of


def compared(first, second):
    return Comparison(named(str(first)), named(str(second)))


def noise(label, seed):
    """Noise of the rows, whose mean over three seeds is 0."""
    return len(label) * (seed - 1) / 5000


@pytest.fixture
def folders(tmp_path, fakes):
    """Two machines' results of one suite; one loss differs, and the processor."""

    def make(name, losses, cpu):
        rows = [
            fakes.make_record(
                label, loss=loss + noise(label, seed) + seed / 10, seed=seed, environment={"cpu": cpu}
            )
            for label, loss in losses.items()
            for seed in (0, 1, 2)
        ]
        return fakes.store(tmp_path / name, rows)

    return (
        make("committed", {"vanilla": 5.0, "mod": 4.8}, "One CPU"),
        make("mine", {"vanilla": 5.0, "mod": 4.9, "extra": 4.0}, "Another CPU"),
    )


def test_rows_of_equal_digits_and_the_reason_of_others_are_named(folders):
    comparison = compared(*folders)
    lines = {row[0]: row for row in comparison.table().rows}
    assert set(lines) == {"vanilla", "mod"}  # only the rows that both have
    assert lines["vanilla"][-1] == "equal"
    assert lines["mod"][-1] == "differ"
    assert lines["mod"][-2] == "not tested"  # the same runs, rounded otherwise
    first, untested, *reasons = comparison.sentences()
    assert first == "2 rows: the digits of 1 differ, those of 1 agree."
    assert "processor" in untested
    assert "nats" not in untested  # routed runs weren't repeated on two types
    assert reasons == ["processor: One CPU | Another CPU", f"Only in {folders[1]}: extra."]


def test_differences_of_rows_are_paired_by_seed(folders):
    comparison = compared(folders[0] / "vanilla", folders[0] / "mod")
    line = next(row for row in comparison.table().rows if row[0] == "heldout_loss")
    # Seeds spread by 0.1, which cancels: all three differences are about -0.2.
    assert line[1] == 3
    assert line[4].startswith("-0.2 (-0.202 to -0.198)")
    assert line[5] == "better"
    assert "router.name: vanilla | mod" in comparison.sentences()


def test_the_interval_of_two_rows_is_that_of_the_page():
    """The noise of a run is pooled over all rows of the folder, as on the page."""
    folder = Path(__file__).parents[2] / "results" / "quick-scores"
    records = read_suite(folder)
    board = suite_of(results_of(records), records.audits)
    (on_page,) = [pair for pair in board.pairs_of("dense") if pair["scheme"] == "token_choice"]
    ours = compared(folder / "vanilla", folder / "token_choice").pairs_of("heldout_loss")
    for name in ("value", "low", "high", "p"):
        assert ours["token_choice"][name] == pytest.approx(on_page[name])


def test_runs_and_routers_can_be_named(tmp_path, fakes):
    rows = [
        fakes.make_record(label, router="mod", options={"capacity": capacity}, seed=seed, loss=loss)
        for label, capacity, loss in (("small", 0.1, 4.9), ("large", 0.5, 4.8))
        for seed in (0, 1)
    ]
    dense = [fakes.make_record("vanilla", seed=seed, loss=5.0) for seed in (0, 1)]
    fakes.store(tmp_path / "tiny", [*rows, *dense])
    of = Comparison(named("tiny/vanilla#1", tmp_path), named("tiny/small@1e12#1", tmp_path))
    assert [set(pairs) for pairs in of.matched.values()] == [{1}]
    assert {result.label for result in named("tiny/mod", tmp_path).results} == {"small", "large"}
    with pytest.raises(UserError, match=r"has no run 'small#7'; did you mean"):
        named("tiny/small#7", tmp_path)


def test_runs_of_several_learning_rates_are_all_compared(tmp_path, fakes):
    def make(name, loss):
        rates = {3e-3: loss, 6e-3: 4.8}
        return fakes.store(
            tmp_path / name,
            [fakes.make_record("mod", loss=of, train={"learning_rate": r}) for r, of in rates.items()],
        )

    comparison = compared(make("a", 4.9), make("b", 9.9))
    lines = {row[0]: row for row in comparison.table().rows}
    assert {label: row[-1] for label, row in lines.items()} == {
        "mod, rate 0.003": "differ",
        "mod, rate 0.006": "equal",
    }
    assert comparison.worse("heldout_loss") == []  # one run each: not tested
    assert lines["mod, rate 0.003"][-2] == "not tested"


def test_rows_with_a_learning_rate_of_their_own_each_are_paired(tmp_path, fakes):
    rates = {"vanilla": 6e-3, "mod": 3e-3}
    rows = [fakes.make_record(label, train={"learning_rate": rate}) for label, rate in rates.items()]
    folder = fakes.store(tmp_path / "a", rows)
    (pairs,) = compared(folder / "vanilla", folder / "mod").matched.values()
    assert set(pairs) == {0}


def test_a_row_that_is_gone_or_failed_is_named_and_counts_as_worse(tmp_path, fakes, capsys):
    both = [fakes.make_record(label) for label in ("vanilla", "mod")]
    first = fakes.store(tmp_path / "first", both)
    failed = fakes.store(tmp_path / "failed", [fakes.make_record("vanilla", status="diverged"), both[1]])
    gone = fakes.store(tmp_path / "gone", [both[1], fakes.make_record("extra")])
    assert f"Only in {first}: vanilla (diverged there)." in compared(first, failed).sentences()
    sentences = compared(first, gone).sentences()
    assert f"Only in {first}: vanilla." in sentences
    assert f"Only in {gone}: extra." in sentences
    for folder in (failed, gone):
        assert main(["compare", str(first), str(folder), "--fail-if-worse", "heldout_loss"]) == 1
        assert "worse in heldout_loss: vanilla" in capsys.readouterr().out


def test_exit_code_is_1_if_a_row_is_worse(tmp_path, fakes, capsys):
    def make(name, losses):
        rows = [
            fakes.make_record(label, loss=loss + noise(label, seed) + seed / 100, seed=seed)
            for label, loss in losses.items()
            for seed in (0, 1, 2)
        ]
        return str(fakes.store(tmp_path / name, rows))

    first, second = make("a", {"vanilla": 5.0, "mod": 4.8}), make("b", {"vanilla": 5.0, "mod": 4.9})
    assert main(["compare", first, second]) == 0
    assert main(["compare", first, second, "--fail-if-worse", "heldout_loss"]) == 1
    assert "worse in heldout_loss: mod" in capsys.readouterr().out
    rows = (f"{second}/mod", f"{first}/mod")
    assert main(["compare", *rows, "--fail-if-worse", "heldout_loss"]) == 0


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        ("nowhere", "mine", "nowhere is no folder of results"),
        ("committed/mood", "mine", "has no run 'mood'; did you mean 'mod'?"),
        ("committed/mod", "mine/extra/w64", "has no run 'extra/w64'"),
    ],
)
def test_a_mistake_is_one_sentence(folders, monkeypatch, capsys, first, second, sentence):
    monkeypatch.chdir(folders[0].parent)
    assert main(["compare", first, second]) == 2
    assert sentence in capsys.readouterr().err


def test_rows_of_a_suite_with_several_budgets_are_compared_at_each(tmp_path, fakes, capsys):
    rows = [
        fakes.make_record(
            label, seed=seed, loss=4 + noise(label, seed) + seed / 100, train={"budget": budget}
        )
        for label in ("vanilla", "mod")
        for budget in (10**12, 2 * 10**12)
        for seed in (0, 1, 2)
    ]
    folder = fakes.store(tmp_path / "a", rows)
    assert main(["compare", str(folder / "vanilla"), str(folder / "mod")]) == 0
    out = capsys.readouterr().out
    assert "adjusted for 2 comparisons" in out
    for budget in ("1e+12", "2e+12"):
        assert f"mod at {budget} FLOPs" in out
        assert re.search(rf"speed-up in .*mod at {re.escape(budget)} FLOPs: 1x", out)
