"""Submissions: the committed ones pass, and a tampered copy of each kind is refused in one sentence."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from inline import modbench_inline

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "results" / "board"
LEAKY = """
from dataclasses import dataclass

from torch import nn

from modbench import ExpertRouter, register_router


class Ahead(nn.Module):
    def __init__(self, width, experts):
        super().__init__()
        self.linear = nn.Linear(width, experts)

    def forward(self, x_NC):
        return self.linear(x_NC - x_NC.mean(dim=-2, keepdim=True))


@register_router("hash_layers")
@dataclass(frozen=True, kw_only=True)
class Leaks(ExpertRouter):
    top_k: int = 1
    balance: float = 0.0

    def scorer(self, model):
        return Ahead(model.width, self.experts)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of a committed submission."""
    return Path(shutil.copytree(ROOT / "submissions" / "hash-layers", tmp_path / "hash-layers"))


def checked(folder: Path, *more: str) -> tuple[int, list[dict[str, str]]]:
    """The exit code and the lines of `modbench check-submission`."""
    words = ("check-submission", folder.name, f"--board={BOARD}", "--json")
    code, printed = modbench_inline(folder.parent, *words, *more)
    return code, json.loads(printed.splitlines()[-1])["checks"]


def edited(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def other_suite(folder: Path) -> None:
    for file in (ROOT / "results" / "quick" / "records").iterdir():
        shutil.copyfile(file, folder / "records" / file.name)


def edited_digest(folder: Path) -> None:
    file = folder / "records" / "runs.jsonl"
    line, *others = file.read_text().splitlines()
    record = json.loads(line)
    record["digest"] = "0" * 64
    file.write_text("\n".join([json.dumps(record), *others]) + "\n")


def edited_loss(folder: Path) -> None:
    file = folder / "records" / "runs.jsonl"
    file.write_text(re.sub(r'"heldout_loss":\d', '"heldout_loss":1', file.read_text(), count=1))


def fewer_seeds(folder: Path) -> None:
    file = folder / "records" / "runs.jsonl"
    lines = file.read_text().splitlines()
    gone = next(json.loads(line)["key"] for line in lines if json.loads(line)["kind"] == "run")
    file.write_text("\n".join(line for line in lines if gone not in line) + "\n")


def too_large(folder: Path) -> None:
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(2 * 10**9)


def no_records(folder: Path) -> None:
    shutil.rmtree(folder / "records")


TAMPERED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a record of another suite": (other_suite, "records", "the runs have several routers"),
    "an edited digest": (edited_digest, "records", "runs.jsonl, line 1"),
    "an edited loss": (edited_loss, "records", "runs.jsonl, line"),
    "a seed is missing": (fewer_seeds, "suite", "the suite demands [500, 501, 502, 503, 504]"),
    "no records": (no_records, "records", "there is no record of a run"),
    "a changed router": (
        lambda folder: edited(folder / "hash_layers.py", "31", "37"),
        "code",
        "run the row again with this code",
    ),
    "a symbolic link": (
        lambda folder: (folder / "more.py").symlink_to("/etc/hostname"),
        "files",
        "put the file itself there",
    ),
    "2 GB": (too_large, "files", "and a submission at most 20"),
    "a wrong claim": (
        lambda folder: edited(folder / "submission.toml", '"better"', '"equivalent"'),
        "claim",
        "claims 'equivalent', and the records say 'better'",
    ),
    "another version": (
        lambda folder: edited(folder / "submission.toml", "version = 1", "version = 2"),
        "suite",
        "states version 2 of suite 'board'",
    ),
    "an unknown suite": (
        lambda folder: edited(folder / "submission.toml", '"board"', '"bored"'),
        "suite",
        "'bored'",
    ),
    "no file": (lambda folder: (folder / "hash_layers.py").unlink(), "files", "there is no such file"),
    "a file outside": (
        lambda folder: edited(folder / "submission.toml", '"hash_layers.py"', '"../hash_layers.py"'),
        "files",
        "it must be the path of a .py file in the folder",
    ),
    "no TOML": (
        lambda folder: (folder / "submission.toml").write_text("title = "),
        "files",
        "isn't TOML",
    ),
    "a key that isn't known": (
        lambda folder: edited(folder / "submission.toml", "licence", "license"),
        "files",
        "did you mean 'licence'",
    ),
    "a package that isn't there": (
        lambda folder: edited(
            folder / "submission.toml", 'file = "hash_layers.py"', 'package = "no-such-router==1.0"'
        ),
        "code",
        "install no-such-router==1.0",
    ),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_copy_is_refused_in_one_sentence(kind: str, copy: Path) -> None:
    tamper, check, words = TAMPERED[kind]
    tamper(copy)
    code, found = checked(copy)
    assert code == 1
    failed = [of for of in found if of["verdict"] == "failed"]
    assert [of["check"] for of in failed] == [check]
    assert words in failed[0]["said"]
    assert "\n" not in failed[0]["said"]
    last = [of["verdict"] for of in found if of["check"] in ("audit", "a run")]
    assert last == ["not run", "not run"]  # its code


def of_code(copy: Path, code: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict[str, str]]:
    """The lines for ``copy`` with ``code``, as if its records were of it."""
    from modbench.submission import checks

    (copy / "hash_layers.py").write_text(code)
    recorded = checks.code_sha256(ROOT / "submissions" / "hash-layers" / "hash_layers.py")
    monkeypatch.setattr(checks, "code_sha256", lambda _: recorded)
    return checked(copy, *more)[1]


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("import no_such_module", "no_such_module"),
        ("import time; time.sleep(600)", "took more than 0.05 minutes"),
        ("bytes(10**15)", "MemoryError"),
        (
            "import socket; socket.create_connection(('192.0.2.1', 80), timeout=60)",
            "Network is unreachable",
        ),
        ("import os; assert 'A_TOKEN' in os.environ", "AssertionError"),
    ],
)
def test_code_runs_with_limits(
    first: str, words: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modbench.submission.isolated import without_network

    if "socket" in first and not without_network():
        pytest.skip("this system takes no network away")
    monkeypatch.setenv("A_TOKEN", "secret")
    text = (copy / "hash_layers.py").read_text()
    minutes = "--minutes=0.05" if "sleep" in first else "--minutes=5"
    found = of_code(copy, f"{first}\n{text}", monkeypatch, minutes)
    failed = [of for of in found if of["verdict"] == "failed"]
    assert [of["check"] for of in failed] == ["audit"]
    assert words in failed[0]["said"]


def test_a_router_that_leaks_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_code(copy, LEAKY, monkeypatch)
    failed = [of for of in found if of["verdict"] == "failed"]
    assert [of["check"] for of in failed] == ["audit"]
    assert "probe 1 causal" in failed[0]["said"]


@pytest.fixture
def my_results(tmp_path: Path) -> Path:
    """A folder in which the row hash_layers was run."""
    records = tmp_path / "my-results" / "board" / "records"
    shutil.copytree(ROOT / "submissions" / "hash-layers" / "records", records)
    shutil.copyfile(ROOT / "submissions" / "hash-layers" / "hash_layers.py", tmp_path / "mine.py")
    return tmp_path


WORDS = ("hash_layers", "--author=A", "--author=B", "--licence=MIT", f"--board={BOARD}")


def test_a_row_becomes_a_submission(my_results: Path) -> None:
    code, printed = modbench_inline(
        my_results, "submit", *WORDS, "--plugin=mine.py", "--out=mine/hash-x"
    )
    assert code == 0, printed
    made = my_results / "mine" / "hash-x"
    assert {path.name for path in made.iterdir()} == {"mine.py", "records", "submission.toml"}
    assert 'claim = "better"' in (made / "submission.toml").read_text()
    kept = (made / "records" / "runs.jsonl").read_text()
    assert kept == (ROOT / "submissions/hash-layers/records/runs.jsonl").read_text()


def test_what_checks_would_refuse_is_not_written(my_results: Path) -> None:
    edited(my_results / "mine.py", "31", "37")
    code, printed = modbench_inline(my_results, "submit", *WORDS, "--plugin=mine.py", "--out=hash-x")
    assert code == 2
    assert "run the row again with this code" in printed
    assert {path.name for path in my_results.iterdir()} == {"mine.py", "my-results"}
    code, printed = modbench_inline(my_results, "submit", *WORDS, "--out=hash-x")
    assert code == 2
    assert "give its file with --plugin" in printed
    code, printed = modbench_inline(my_results, "submit", *WORDS, "--plugin=mine.py", "--out=my-results")
    assert code == 2
    assert "my-results exists" in printed


def test_the_board_has_the_rows_of_submissions() -> None:
    from modbench.records.submission import submissions_to
    from modbench.report.api import pairs

    with_them = pairs(BOARD, submissions_to("board", ROOT / "submissions"))
    without = pairs(BOARD)
    assert "hash-layers" in {*with_them["scheme"]}
    assert "hash-layers" not in {*without["scheme"]}
    dense = with_them[with_them["family"] == "dense"]
    assert len(dense) == len(without[without["family"] == "dense"]) + len(
        [*(ROOT / "submissions").iterdir()]
    )
    page = (BOARD / "leaderboard.md").read_text()
    assert "(../../submissions/hash-layers)" in page


def test_the_workflow_has_no_rights_and_its_steps_run_as_written(tmp_path: Path) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "submission.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in (ROOT / ".github" / "workflows" / "submission.yml").read_text()
    # A clone with a merge that adds a submission, and a python that has everything.
    clone = tmp_path / "clone"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (clone / "submissions" / "a-b").mkdir(parents=True)
    (clone / "results" / "board").mkdir(parents=True)
    (clone / "results" / "board" / "leaderboard.md").write_text("the board\n")
    subprocess.run([*git, "init", "-q"], cwd=clone, check=True)
    for word in ("first", "second"):
        (clone / "submissions" / "a-b" / word).write_text(word)
        subprocess.run([*git, "add", "-A"], cwd=clone, check=True)
        subprocess.run([*git, "commit", "-qm", word], cwd=clone, check=True)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@" | tee -a "$CALLS"\n')
    python.chmod(0o755)
    summary, calls = tmp_path / "summary.md", tmp_path / "calls"
    environment = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "GITHUB_STEP_SUMMARY": str(summary),
        "CALLS": str(calls),
    }
    for step in workflow["jobs"]["check"]["steps"]:
        if "run" in step:
            shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            subprocess.run(shell, cwd=clone, env=environment, check=True)
    assert calls.read_text().splitlines() == [
        "-m pip install nox",
        "-m nox -s submission -- submissions/a-b",
        "-m nox -s board",
    ]
    assert summary.read_text().startswith("```\n-m nox -s submission -- submissions/a-b\n```\n")
    assert "the board" in summary.read_text()


@pytest.mark.slow
def test_a_run_drawn_at_random_is_trained_again(copy: Path) -> None:
    code, found = checked(copy)
    assert code == 0
    assert found[-1]["check"] == "a run"
    assert found[-1]["verdict"] == "passed"
