"""Which folder of results a name means, wherever the user stands."""

import shutil
from pathlib import Path

import pytest

from modbench.cli.main import main
from modbench.errors import UserError
from modbench.records.named import folder_of


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of two suites; the working directory is above them."""
    for name in ("results/confirm", "results/quick", "quick"):
        (tmp_path / name / "records").mkdir(parents=True)
        (tmp_path / name / "records" / "a.jsonl").touch()
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("place", "name", "given", "folder", "row"),
    [
        (".", "results/confirm", "my-results", "results/confirm", ""),
        (".", "results/confirm/", "my-results", "results/confirm", ""),
        (".", "./results//confirm/mod/w64@1e11#0", "my-results", "results/confirm", "mod/w64@1e11#0"),
        (".", "confirm/mod/", "results", "results/confirm", "mod"),
        (".", "quick", "results", "results/quick", ""),  # the option counts
        (".", "./quick", "results", "quick", ""),
        (".", "mod", "results/confirm", "results/confirm", "mod"),
        ("results/confirm", ".", "my-results", "results/confirm", ""),
        ("results/confirm", "./mod", "my-results", "results/confirm", "mod"),
        ("results/confirm", "mod", "my-results", "results/confirm", "mod"),
        ("results/confirm", "../quick", "my-results", "results/quick", ""),
        ("results/confirm", "quick/mod", "..", "results/quick", "mod"),
        ("results/confirm/records", "..", "my-results", "results/confirm", ""),
    ],
)
def test_a_path_and_a_name_in_the_results_folder_mean_the_same(
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    name: str,
    given: str,
    folder: str,
    row: str,
) -> None:
    monkeypatch.chdir(results.parent / place)
    named, rest = folder_of(name, Path(given))
    assert (named.resolve(), rest) == (results.parent / folder, row)
    assert named.name == Path(folder).name  # which titles show
    assert folder_of(results.parent / folder / row, Path(given)) == (results.parent / folder, row)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("confrim", "results", "did you mean 'confirm'? known: confirm, quick"),
        ("results/confrim/mod", "my-results", "did you mean 'results/confirm'? known: results/confirm,"),
        ("results", "my-results", "known: results/confirm, results/quick"),
        ("confirm", "my-results", "known: results/confirm, results/quick"),
        ("../nowhere", "my-results", "../nowhere is no folder of results"),
        ("n" * 300, "results", "known: confirm"),
    ],
)
def test_a_name_of_no_results_lists_those_that_are_there(
    results: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: str, words: str
) -> None:
    monkeypatch.chdir(results.parent)
    shutil.rmtree("quick")
    with pytest.raises(UserError) as refused:
        folder_of(name, Path(given))
    assert words in str(refused.value)


def test_a_report_takes_the_path_of_a_suite(tmp_path, fakes, monkeypatch, capsys) -> None:
    folder = fakes.store(tmp_path / "results" / "fake", [fakes.make_record("vanilla")])
    monkeypatch.chdir(tmp_path)
    assert main(["report", "results/fake/", "--csv"]) == 0
    assert (folder / "leaderboard.csv").exists()
    monkeypatch.chdir(folder)
    assert main(["report", ".", "--check"]) == 1
    assert "leaderboard.md is missing" in capsys.readouterr().out
