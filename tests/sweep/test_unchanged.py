"""A command that finds nothing left and nothing changed says the same again, and works on nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_suite import modbench_says, start, write_suite

WORDS = ("run", "suite.toml", "--results", "results")


def states(place: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.processes
def test_the_second_command_writes_nothing_and_loads_no_torch(tmp_path: Path) -> None:
    write_suite(tmp_path, "small", "vanilla")
    assert modbench_says(tmp_path, *WORDS)[0] == 0
    before = states(tmp_path)
    code = (
        "import sys\nfrom modbench.cli.main import main\n"
        f"print(main({[*WORDS]!r}), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "MODBENCH_CACHE": str(tmp_path / "cache")}
    again = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.stderr == "modbench: small: 1 of 1 run done\n"
    assert again.stdout.startswith("# Suite small")
    assert again.stdout.endswith("0 False\n")
    assert states(tmp_path) == before


def edit_suite(place: Path) -> None:
    path = place / "suite.toml"
    path.write_text(path.read_text().replace('name = "small"', 'name = "small"\ndescription = "d"'))


def edit_text(place: Path) -> None:
    with (place / "text.txt").open("a") as file:
        file.write("one line more")


def add_a_record(place: Path) -> None:
    (place / "results" / "small" / "records" / "more.jsonl").write_text("")


def remove_the_table(place: Path) -> None:
    (place / "results" / "small" / "leaderboard.md").unlink()


@pytest.mark.parametrize("change", [edit_suite, edit_text, add_a_record, remove_the_table])
def test_a_change_is_seen(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(tmp_path, "small", "vanilla")
    code, said = modbench_says(tmp_path, *WORDS)
    assert code == 0, said
    monkeypatch.setattr("modbench.sweep.run.run_suite", lambda *given, **named: 77)
    assert modbench_says(tmp_path, *WORDS)[0] == 0
    assert modbench_says(tmp_path, *WORDS, "--only", "vanilla")[0] == 77
    change(tmp_path)
    assert modbench_says(tmp_path, *WORDS)[0] == 77


@pytest.mark.processes
def test_a_command_that_failed_is_run_again(tmp_path: Path) -> None:
    write_suite(tmp_path, "small", "vanilla", sweep={"budgets": [1e7], "seeds": [0]})
    (tmp_path / "results" / "small").mkdir(parents=True)
    (tmp_path / "results" / "small" / "runs").write_text("")  # where its folder would be
    for _ in range(2):
        command = start(tmp_path, *WORDS)
        out, _ = command.communicate(timeout=300)
        assert command.returncode == 2, out
        assert "runs" in out
