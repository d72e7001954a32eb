"""Where what is printed can't go, and results that can't be read: a sentence, no traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import modbench
from modbench.cli.main import main


def shell(line: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """``line`` as bash runs it, in which MODBENCH is the command."""
    line = line.replace("MODBENCH", f"{sys.executable} -m modbench")
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=cwd, env=environment, timeout=60
    )


def test_who_stops_it_while_it_loads_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    done = shell("PYTHONPATH=.:$PYTHONPATH MODBENCH list suites", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "modbench: stopped\n")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "MODBENCH list metrics > /dev/full",
            "modbench: the output: No space left on device; make room",
        ),
        ("MODBENCH --help > /dev/full", "modbench: the output: No space left on device; make room"),
        ("ulimit -f 1; MODBENCH list metrics > o", "modbench: the output: File too large; make room"),
    ],
    ids=["full", "full-help", "too-large"],
)
def test_output_that_finds_no_room_is_told(line: str, sentence: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(sentence)


@pytest.mark.parametrize("line", ["MODBENCH --help >&-", "MODBENCH list metrics >&-"])
def test_a_closed_output_is_nobodys_mistake(line: str, tmp_path: Path) -> None:
    done = shell(line, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    done = shell("MODBENCH list | true; exit ${PIPESTATUS[0]}", tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_file_in_place_of_the_results_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["report", "--results", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'}: can't be read (Not a directory); make" in capsys.readouterr().err


@pytest.mark.parametrize("shut", [".", "quick/records"])
def test_results_that_may_not_be_read_are_told(
    shut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user without the right to read sees it; root may read all."""
    (tmp_path / "quick" / "records").mkdir(parents=True)
    scandir, listdir, closed = os.scandir, os.listdir, tmp_path / shut

    def refused(real):  # type: ignore[no-untyped-def]
        def listing(path: str | Path = ".") -> Iterator[object]:
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real(path)

        return listing

    monkeypatch.setattr(os, "scandir", refused(scandir))
    monkeypatch.setattr(os, "listdir", refused(listdir))
    assert main(["report", "--results", str(tmp_path)]) == 2
    assert f"{closed}: can't be read (Permission denied); make it readable" in capsys.readouterr().err
