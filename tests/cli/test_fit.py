"""The command `modbench fit`: tables, files, mistakes, and the example of the manual."""

import csv
import json
import re
from pathlib import Path

import pytest
from isoflop_points import csv_of, points_of

from modbench.cli.main import main

pytestmark = pytest.mark.figures

DOCS = Path(__file__).parent.parent.parent / "docs"
POINTS = [*points_of(budgets=(1e18, 1e19), sizes=5)]
FITS = ["parabola", "akima", "surface"]


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with points.csv."""
    monkeypatch.chdir(tmp_path)
    Path("points.csv").write_text(csv_of("N,C,loss", POINTS))


def columns(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_the_example_of_the_manual_prints_what_the_manual_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    section = (
        (DOCS / "isoflop.md").read_text().split("## Fit your own points")[1].split("\n## Several")[0]
    )
    (points,) = re.findall(r"```csv\n(.*?)```", section, flags=re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", section, flags=re.DOTALL)
    assert "\nmodbench fit my-points.csv\n" in section
    Path("my-points.csv").write_text(points)
    assert main(["fit", "my-points.csv"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(shown.splitlines()) > 10
    assert [line for line in shown.splitlines() if line not in printed] == []


def test_table_and_figure_are_written_next_to_the_file_which_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("points.csv").rename("points.fit.csv")  # the name that a file points.csv would give its table
    before = Path("points.fit.csv").read_bytes()
    assert main(["fit", "points.fit.csv", "--fit", "parabola"]) == 0
    names = ["points.fit.fit.csv", "points.fit.fit.png", "points.fit.fit.svg"]
    assert sorted(path.name for path in Path().iterdir()) == ["points.fit.csv", *names]
    assert Path("points.fit.csv").read_bytes() == before
    assert Path(names[1]).read_bytes().startswith(b"\x89PNG")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == names


def test_csv_is_the_written_table_and_json_has_the_same_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", "points.csv", "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    assert printed == Path("points.fit.csv").read_text()
    rows = columns(printed)
    assert [(row["budget"], row["fit"]) for row in rows] == [
        (budget, fit) for budget in ("1e+18", "1e+19") for fit in FITS
    ]
    assert main(["fit", "points.csv", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == "points.csv"
    assert any("C = 6 N D" in note for note in document["notes"])
    assert [str(row["size"]) for row in document["optima"]] == [row["size"] for row in rows]
    assert [str(row["size_exponent"]) for row in document["exponents"]] == [
        row["size_exponent"] for row in rows[:3]
    ]
    (surface,) = document["surfaces"]
    assert str(surface["huber_1e6"]) == rows[2]["huber_1e6"]
    assert rows[0]["huber_1e6"] == ""


def test_curves_without_an_optimum_have_a_verdict_in_place_of_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    falling = [(1e7, 1e18, 3.9), (2e7, 1e18, 3.7), (4e7, 1e18, 3.6)]
    Path("points.csv").write_text(csv_of("N,C,loss", [*falling, *POINTS[5:]]))
    assert main(["fit", "points.csv", "--format", "csv"]) == 0
    first, *_ = columns(capsys.readouterr().out)
    assert (first["minimum"], first["size"], first["size_exponent"]) == ("edge-high", "", "")
    assert main(["fit", "points.csv"]) == 0
    assert "No exponents of all by parabola: fewer than two interior optima." in capsys.readouterr().out


def test_repeated_seeds_give_intervals_and_single_ones_a_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [(*point, 0) for point in POINTS]
    rows += [(size, flops, loss + 0.002 * (-1) ** n, 1) for n, (size, flops, loss) in enumerate(POINTS)]
    Path("seeds.csv").write_text(csv_of("N,C,loss,seed", rows))
    assert main(["fit", "seeds.csv", "--fit", "parabola"]) == 0
    with_seeds = capsys.readouterr().out
    assert re.search(r"\| parabola \| interior \| 8[0-9.]+ M \([0-9.]+ M to [0-9.]+ M\) \|", with_seeds)
    assert "No interval" not in with_seeds
    assert main(["fit", "points.csv", "--fit", "parabola"]) == 0
    assert "No interval for 2 optima: one seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "content", "sentence"),
    [
        (["none.csv"], None, "none.csv: no such file"),
        (["bad.csv"], "N,C,loss\n1,2,x\n", "bad.csv, line 2, column 'loss': 'x' is not"),
        (["bad.csv"], "N,C,loss\n1,2,3\n", "bad.csv has no curve of three sizes"),
    ],
)
def test_a_mistake_gives_one_sentence_and_exit_code_2(
    arguments: list[str], content: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("bad.csv").write_text(content)
    assert main(["fit", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"modbench: {sentence}")
    assert not list(Path().glob("*.fit.*"))
