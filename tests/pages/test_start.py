"""The five-minute start: its files and commands do what the page says, and its table is the one made."""

import re
import shlex
from pathlib import Path

import pytest
from small_suite import modbench_says

pytestmark = pytest.mark.figures

PAGE = (Path(__file__).parents[2] / "docs" / "start.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_commands_of_the_five_minute_start_do_what_it_says(tmp_path: Path) -> None:
    (code,), (suite,) = blocks("python"), blocks("toml")
    (tmp_path / "my_router.py").write_text(code)
    (tmp_path / "small.toml").write_text(suite)
    said = {}
    for command in (line for block in blocks("sh") for line in block.splitlines()):
        program, *words = shlex.split(command)
        if program == "modbench":
            exit_code, said[words[0]] = modbench_says(tmp_path, *words)
            assert exit_code == 0, said[words[0]]
    assert [*said] == ["check", "run", "report", "sample"]
    (ratio,) = re.findall(r"^train FLOPs per token .* ([\d.]+)$", said["check"], re.MULTILINE)
    assert f"{float(ratio):.2f}" == re.findall(r"`ratio` of ([\d.]+)", PAGE)[0]
    assert len(re.findall(r"^ ?\d+  .* passed ", said["check"], re.MULTILINE)) == 12
    assert "In the beginning" in said["sample"]
    results = tmp_path / "my-results" / "small"
    compare_tables((results / "leaderboard.md").read_text(), said["run"])
    for name in ("records", "leaderboard.md", "leaderboard.csv", "runs", ".report"):
        assert (results / name).exists(), name


def compare_tables(page: str, printed: str) -> None:
    """Compare the rows of ``page`` with those of the guide: what other processors change, roughly."""
    (table,) = re.findall(r"<!-- table -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    header, rule, *rows = table.splitlines()
    assert f"{header}\n{rule}\n" in page
    assert header in printed
    for row in rows:
        label, *stated = cells(row)
        made = next(cells(line)[1:] for line in page.splitlines() if line.startswith(f"| {label} |"))
        assert float(made[1]) == pytest.approx(float(stated[1]), abs=0.1)
        assert len(made[1]) == len(stated[1])
        assert float(made[3].split()[0]) == pytest.approx(float(stated[3].split()[0]), rel=0.1)
        assert int(made[4].replace(",", "")) == pytest.approx(int(stated[4].replace(",", "")), rel=0.02)
        assert (made[5], made[7]) == (stated[5], stated[7])


def test_what_the_page_says_of_a_row_follows_from_its_table() -> None:
    (table,) = re.findall(r"<!-- table -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    dense, (label, _, loss, difference, flops, tokens, *_, cache, audit) = map(
        cells, table.splitlines()[2:]
    )
    assert (label, dense[0]) == ("my_router", "vanilla")
    assert float(loss) - float(dense[2]) == pytest.approx(float(difference), abs=1.01e-3)
    assert float(flops.split()[0]) < float(dense[4].split()[0])
    assert int(tokens.replace(",", "")) > int(dense[5].replace(",", ""))
    assert float(cache) < 1
    assert (audit, dense[-1]) == ("passed 12", "passed 6, n/a 6")
