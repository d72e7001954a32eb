"""Benchmarks of two revisions: which changed, which are missing, which are new."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from compare_revisions import Tree, main
from comparison import Change, Comparison, compare, medians_of

pytestmark = pytest.mark.full

STEADY = {"steady": 1.0}


def processes(*values: float, name: str = "one") -> list[dict[str, float]]:
    return [STEADY | {name: value} for value in values]


def verdict(before: list[float], after: list[float]) -> str:
    return compare(processes(*before), processes(*after)).verdict("one")


def test_what_lies_apart_has_changed() -> None:
    assert verdict([1.0, 1.02, 0.99], [1.1, 1.05, 1.2]) == "slower"
    assert verdict([1.1, 1.05, 1.2], [1.0, 1.02, 0.99]) == "faster"


def test_what_overlaps_has_not() -> None:
    assert verdict([1.0, 1.02, 1.06], [1.1, 1.05, 1.2]) == "same"
    assert verdict([1.1, 1.05, 1.2], [1.0, 1.02, 1.06]) == "same"


def test_what_lies_apart_by_less_than_two_percent_has_not() -> None:
    assert verdict([1.0, 1.001, 1.002], [1.01, 1.011, 1.012]) == "same"
    assert verdict([1.0, 1.001, 1.002], [1.03, 1.031, 1.032]) == "slower"
    assert verdict([1.01, 1.011, 1.012], [1.0, 1.001, 1.002]) == "same"


def test_ratio_and_interval() -> None:
    change = Change(before=[1.0, 2.0, 4.0], after=[2.0, 3.0, 4.0])
    assert change.ratio == 1.5
    assert change.interval == (1.0, 2.0)


def test_missing_and_new() -> None:
    before = [{"both": 1.0, "left": 1.0, "shaky": 1.0}] * 2
    both = {"both": 1.0, "added": 1.0, "alone": 1.0}
    after = [both | {"shaky": 1.0}, both]
    there = ["both", "left", "shaky", "alone", "renamed", "broken"]
    found = compare(before, after, there, here=["both", "added", "alone", "shaky", "broken"])
    assert list(found.changes) == ["both"]
    assert found.missing == ["left", "renamed", "shaky"]
    assert found.new == ["added"]
    assert found.here_alone == ["alone"]
    assert found.not_run == ["broken"]


@pytest.mark.parametrize(
    ("before", "after", "fails"),
    [
        ([1.0, 1.0], [2.0, 2.0], True),
        ([2.0, 2.0], [1.0, 1.0], False),
        ([1.0, 1.0], [1.0, 1.0], False),
    ],
)
def test_slower_fails_and_faster_does_not(before: list[float], after: list[float], fails: bool) -> None:
    assert compare(processes(*before), processes(*after)).failed is fails


def test_missing_fails_and_new_does_not() -> None:
    assert compare([STEADY], [{}]).failed
    assert not compare([{}], [STEADY]).failed


@pytest.mark.parametrize(("second", "says"), [(2.0, "slower"), (1.0, "same"), (0.5, "same")])
def test_a_change_must_show_again(second: float, says: str) -> None:
    slower = Change(before=[1.0, 1.0], after=[2.0, 2.0])
    again = {"one": Change(before=[1.0, 1.0], after=[second, second])}
    found = Comparison(changes={"one": slower}, missing=[], new=[], again=again)
    assert found.verdict("one") == says
    assert found.failed is (says == "slower")
    assert next(found.lines()).endswith(says)


def test_lines_say_each_verdict_and_how_many() -> None:
    found = compare(processes(0.5, 0.5), processes(0.75, 0.75), there=["left"])
    one, steady, left, counts = found.lines()
    shown = "500.000 ms -> 750.000 ms 1.500 x [1.500 to 1.500] slower"
    assert " ".join(one.split()) == f"one {shown}"
    assert steady.split()[-1] == "same"
    assert left == "left  missing"
    assert counts == "1 slower, 0 faster, 1 same, 1 missing, 0 new, 0 run here alone, 0 not run"


def test_medians_are_read_and_bytes_in_their_place(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.json"
    assert medians_of(file) == {}
    stats = {"median": 0.25, "mean": 0.5}
    timed = {"fullname": "timed", "extra_info": {"ratio": 2}, "stats": stats}
    sized = {"fullname": "sized", "extra_info": {"bytes": 3_000_000}, "stats": stats}
    file.write_text(json.dumps({"benchmarks": [timed, sized]}))
    assert medians_of(file) == {"timed": 0.25, "sized": 3e6}
    assert "3.0 MB ->" in next(compare([{"sized": 3e6}], [{"sized": 3e6}]).lines())


BENCH = """
import time
import modbench

def test_nap(benchmark):
    benchmark.pedantic(time.sleep, args=(modbench.NAP,), rounds=3)

def test_steady(benchmark):
    benchmark.pedantic(time.sleep, args=(0.02,), rounds=3)
"""
OPTIONS = """
def pytest_addoption(parser):
    parser.addoption("--perf-seconds")
    parser.addoption("--perf-turns")
"""


def bench(name: str, run: str) -> str:
    return f"\ndef test_{name}(benchmark):\n    benchmark.pedantic({run}, rounds=1)\n"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two revisions, the later one in the working tree: it naps for longer, lacks what one benchmark
    measures, has another, has dropped a benchmark altogether, and edited one, which asks for what the
    earlier one lacks. The machine is at rest."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    perf, package = tmp_path / "tests" / "perf", tmp_path / "modbench"
    for folder in (perf, package):
        folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '-q'\n")
    (perf / "conftest.py").write_text(OPTIONS)
    old, added, dropped = (
        bench("old", "modbench.old"),
        bench("added", "modbench.added"),
        bench("gone", "int"),
    )
    (perf / "bench_naps.py").write_text(BENCH + old + dropped + bench("edited", "modbench.old"))
    (package / "__init__.py").write_text("NAP = 0.02\nold = int\n")

    def git(*words: str) -> None:
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    broken = bench("broken", "modbench.neither")
    (perf / "bench_naps.py").write_text(BENCH + old + added + broken + bench("edited", "modbench.added"))
    (package / "__init__.py").write_text("NAP = 0.2\nadded = int\n")
    return tmp_path


def test_a_repository_is_compared_with_its_past(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    assert main(["--against", "HEAD", "--pairs", "2"], repository) == 1
    said = capsys.readouterr()
    assert "the machine is busy: its load is 99.0 and it has " in said.err
    lines = {line.split()[0]: line.split()[-1] for line in said.out.splitlines()[1:-1]}
    assert {name.partition("::test_")[2]: verdict for name, verdict in lines.items()} == {
        "nap": "slower",
        "steady": lines["tests/perf/bench_naps.py::test_steady"],  # as the machine's noise has it
        "old": "missing",
        "gone": "missing",
        "added": "new",
        "edited": "alone",  # the end of "run here alone"
        "broken": "run",  # the end of "not run"
    }
    listed = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--against", "nowhere"], "git can't check out nowhere: fatal: invalid reference"),
        (["--against", "HEAD", "-k", "nothing", "--pairs", "2"], "no benchmark is asked for"),
        (["--against", "HEAD", "-k", "(("], "error: ERROR: Wrong expression passed to '-k': (("),
        (["--against", "HEAD", "--pears", "3"], "error: unrecognized arguments: --pears 3"),
    ],
)
def test_what_cannot_be_compared_is_told(
    words: list[str], says: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words, repository) == 2
    assert says in capsys.readouterr().err


def test_interrupting_it_leaves_no_work_tree(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tree, "check", lambda tree: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["--against", "HEAD"], repository) == 130
    assert capsys.readouterr().err == "error: interrupted; nothing was compared\n"
    listed = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 1


def test_another_modbench_is_not_measured_unawares(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A revision without the package, where an installed one would be found."""
    git = ["git", "-C", str(repository), "-c", "user.name=nobody", "-c", "user.email=nobody@example.com"]
    subprocess.run([*git, "rm", "--quiet", "--cached", "-r", "modbench"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "bare"], check=True)
    assert main(["--against", "HEAD"], repository) == 2
    assert "HEAD: " in capsys.readouterr().err
