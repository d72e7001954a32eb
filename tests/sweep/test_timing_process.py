"""A process that measures leaves others behind."""

import sys
from pathlib import Path

import pytest

from modbench.sweep.timing_process import DiedError, run_worker

FORKS = """
import os, sys, time
sys.stdin.readline()
if os.fork() == 0:
    time.sleep(10)
    open({late!r}, "w")
    os._exit(0)
{ends}
"""


def forks(ends: str, place: Path) -> dict[str, object]:
    code = FORKS.format(late=str(place / "late"), ends=ends)
    spec = {"kind": "time", "threads": 1}
    return run_worker([sys.executable, "-c", code], spec, place / "log", lambda event: None)


def test_what_it_forked_ends_with_it(tmp_path: Path) -> None:
    assert forks("""print('{"status": "ok"}')""", tmp_path) == {"status": "ok"}
    assert not (tmp_path / "late").exists()


def test_a_long_result_comes_whole(tmp_path: Path) -> None:
    ends = """print('{"event": 1}'); print('{"status": "' + 10**6 * "o" + '"}', end="")"""
    assert forks(ends, tmp_path) == {"status": 10**6 * "o"}


def test_what_a_process_forked_that_died_ends_with_it(tmp_path: Path) -> None:
    with pytest.raises(DiedError, match="exit code 7"):
        forks("os._exit(7)", tmp_path)
    assert not (tmp_path / "late").exists()
