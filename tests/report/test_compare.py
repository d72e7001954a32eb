"""modbench compare: two results folders, or two rows of them."""

import pytest

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.named import named
from modbench.report.compare import Comparison


def compared(first, second):
    return Comparison(named(str(first)), named(str(second)))


@pytest.fixture
def folders(tmp_path, fakes):
    """Two machines' results of one suite; one loss differs, and the processor."""

    def make(name, losses, cpu):
        rows = [
            fakes.make_record(label, loss=loss + seed / 10, seed=seed, environment={"cpu": cpu})
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
    first, *reasons = comparison.sentences()
    assert first == "2 rows: the digits of 1 differ, those of 1 agree."
    assert reasons == ["processor: One CPU | Another CPU"]


def test_equal_folders_have_equal_digits(folders):
    sentences = compared(folders[0], folders[0]).sentences()
    assert sentences == ["2 rows: the same digits in all metrics that both sides have."]


def test_differences_of_rows_are_paired_by_seed(folders):
    comparison = compared(folders[0] / "vanilla", folders[0] / "mod")
    line = next(row for row in comparison.table().rows if row[0] == "heldout_loss")
    # Seeds spread by 0.1, which cancels: all three differences are -0.2.
    assert line[1] == 3
    assert line[4].startswith("-0.2 (-0.2 to -0.2)")
    assert line[5] == "better"
    assert "router.name: vanilla | mod" in comparison.sentences()


def test_exit_code_is_1_if_a_row_is_worse(folders, capsys):
    first, second = (str(folder) for folder in folders)
    assert main(["compare", first, second]) == 0
    assert main(["compare", first, second, "--fail-if-worse", "heldout_loss"]) == 1
    assert "worse in heldout_loss: mod" in capsys.readouterr().out
    assert main(["compare", second, first, "--fail-if-worse", "heldout_loss"]) == 0


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


def test_a_metric_without_a_better_side_is_refused(folders):
    with pytest.raises(UserError, match="metric 'leak' can't be worse"):
        compared(*folders).worse("leak")


def test_several_sizes_of_a_scheme_are_refused_as_one_row(tmp_path, fakes):
    rows = [fakes.make_record(f"mod/{size}") for size in ("small", "large")]
    folder = fakes.store(tmp_path / "sizes", [*rows, fakes.make_record("vanilla")])
    with pytest.raises(UserError, match="several sizes; name one: mod/large, mod/small"):
        compared(folder / "vanilla", folder / "mod").table()
