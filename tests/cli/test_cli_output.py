"""Output that is not read to its end, and folders that cannot be read."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import modbench
from modbench.cli.main import main


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m modbench list | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert (done.stdout, done.stderr) == ("routers\n", "")


@pytest.mark.parametrize("file", ["cache/tokens", None])
def test_a_full_disk_gets_one_sentence(
    file: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    monkeypatch.setattr("modbench.sweep.run.run_suite", refuse)
    assert main(["run", "quick"]) == 2
    said = f"modbench: {file or 'the output'}: No space left on device\n"
    assert capsys.readouterr().err == said


def test_a_file_in_place_of_the_results_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["report", "--results", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'}: can't be read (Not a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("shut", [".", "quick/records"])
def test_results_without_permission_to_read_are_named(
    shut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Simulated, since root may read everything."""
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
    assert f"{closed}: can't be read (Permission denied)" in capsys.readouterr().err
