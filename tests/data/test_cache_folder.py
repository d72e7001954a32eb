"""The cache: a file is there whole or not at all, and one process at a time makes it."""

import os
import subprocess
import sys
import time

import pytest

from modbench.data.cache_folder import cache_folder, file_lock, put
from modbench.errors import UserError


def test_variable_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MODBENCH_CACHE")
    assert "modbench" in cache_folder().parts


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(monkeypatch, tmp_path):
    path = tmp_path / "a"
    put(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"can't be written \(No space left on device\); set MODBENCH_CACHE"
    ):
        put(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


HOLD = """
import sys, time
from pathlib import Path
from modbench.data.cache_folder import file_lock
with file_lock(Path(sys.argv[1]), print):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_second_process_waits_and_a_killed_one_gives_the_lock_up(tmp_path):
    path = tmp_path / "a"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    with holder, holder.stdout as said:
        assert said.readline() == "in\n"
        heard = []

        def kill_when_waiting(sentence):
            heard.append(sentence)
            holder.kill()

        began = time.monotonic()
        with file_lock(path, kill_when_waiting):
            assert time.monotonic() - began < 30
    assert heard == ["another process is preparing a: waiting for it"]
