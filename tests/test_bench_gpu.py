"""`nox -s bench-gpu` on a machine without a GPU: all of its path but CUDA itself."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inline import modbench_inline
from nox.command import CommandFailed

ROOT = Path(__file__).parents[1]
#: Sizes in place of those of suites/gpu.toml; its tables and keys stay as they are.
SMALL = {
    "width": "32",
    "layers": "2",
    "heads": "4",
    "source": '"text"\npath = "text.txt"',
    "tokenizer": '"bytes"',
    "vocabulary": "257",
    "sequence": "32",
    "batch": "2",
    "micro_batch": "2",
    "heldout_tokens": "64",
    "curve_tokens": "32",
    "repetitions": "1",
    "prefill": "[16]",
    "decode_past": "[8]",
    "decode_batches": "[1]",
    "budgets": "[2e8]",
    "device": '"auto"',
}


class Session:
    """Stands for nox's session: keeps each command, and answers it with ``run_command``."""

    def __init__(
        self, *words: str, run_command: Callable[[list[str]], Any] = lambda words: None
    ) -> None:
        self.posargs = list(words)
        self.commands: list[list[str]] = []
        self._run = run_command

    def run(self, *words: str, **_: Any) -> Any:
        if "doctor" in words:
            return None
        self.commands.append([str(word) for word in words[1:]])
        return self._run([str(word) for word in words])

    def error(self, message: str) -> None:
        raise RuntimeError(message)


@pytest.fixture(scope="module")
def noxfile() -> Iterator[ModuleType]:
    """The sessions, as with `nox --no-venv`."""
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nox", "--no-venv"])
        yield module


def test_times_come_first_and_training_gets_its_own_options(noxfile: ModuleType) -> None:
    session = Session("--only", "mod", "--repetitions", "1", "--again")
    noxfile.bench_gpu.func(session)
    words = ["suites/gpu.toml", "--only", "mod"]
    there = ["--results", "my-results-gpu"]
    assert session.commands == [
        ["-m", "modbench", "time", *words, "--repetitions", "1", "--again", *there],
        ["-m", "modbench", "run", *words, *there],
    ]


@pytest.mark.parametrize("code", [1, 2])
def test_a_scheme_without_times_is_trained_and_a_refusal_ends_the_session(
    noxfile: ModuleType, code: int
) -> None:
    def fail(words: list[str]) -> None:
        if "time" in words:
            raise CommandFailed(f"Returned code {code}")

    session = Session(run_command=fail)
    if code == 1:
        with pytest.raises(RuntimeError, match="training succeeded"):
            noxfile.bench_gpu.func(session)
    else:
        with pytest.raises(CommandFailed):
            noxfile.bench_gpu.func(session)
    assert len(session.commands) == (2 if code == 1 else 1)


def test_a_machine_without_a_gpu_is_told_what_to_run(noxfile: ModuleType) -> None:
    class OnCpu(Session):
        def run(self, *words: str, **_: Any) -> Any:
            assert words[-2:] == ("doctor", "--gpu")
            raise CommandFailed("Returned code 1")

    with pytest.raises(RuntimeError, match="on a CPU run: nox -s bench"):
        noxfile.bench_gpu.func(OnCpu())


def test_its_commands_run_on_a_small_copy_of_its_suite(noxfile: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    text = (ROOT / "suites" / "gpu.toml").read_text()
    for key, value in SMALL.items():
        text, found = re.subn(rf"^{key} = [^#\n]*", f"{key} = {value} ", text, flags=re.MULTILINE)
        assert found
    (tmp_path / "suites" / "gpu.toml").write_text(text)
    (tmp_path / "text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(400)))

    def run_here(words: list[str]) -> None:
        code, said = modbench_inline(tmp_path, *words[words.index("modbench") + 1 :])
        assert code == 0, said

    session = Session("--only", "mod/124M", run_command=run_here)
    noxfile.bench_gpu.func(session)
    assert len(session.commands) == 2
    files = {path.name for path in (tmp_path / "my-results-gpu" / "gpu").iterdir()}
    assert {"leaderboard.md", "leaderboard.csv", "timings.md", "timings.csv", "memory.csv"} <= files
    leaderboard = (tmp_path / "my-results-gpu" / "gpu" / "leaderboard.md").read_text()
    assert "mod/124M" in leaderboard
