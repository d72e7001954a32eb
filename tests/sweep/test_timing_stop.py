"""`modbench time` is asked to end in the middle."""

import os
import signal
import subprocess
import sys
import time as clock
from pathlib import Path

import pytest
from timing_suite import write_suite

import modbench
from modbench.records.store import RECORDS

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_says_so_and_leaves_nothing_half_done(
    number: int, tmp_path: Path
) -> None:
    write_suite(tmp_path, "slow")
    worker = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
    code = (
        "import sys, modbench.cli.main, modbench.sweep.worker as worker\n"
        f"worker.COMMAND = {worker!r}\n"
        "sys.exit(modbench.cli.main.main(['time', 'suite.toml', '--only', 'slow']))"
    )
    places = {
        "FAKE_LOG": str(tmp_path / "log"),
        "MODBENCH_CACHE": str(tmp_path / "cache"),
    }
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **places, "PYTHONPATH": str(Path(modbench.__file__).parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    measuring = tmp_path / "slow"
    deadline = clock.monotonic() + 100
    while not (measuring.exists() and measuring.read_text()):
        assert run.poll() is None
        assert clock.monotonic() < deadline
        clock.sleep(0.05)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.endswith("modbench: stopped; run the same command again to continue\n")
    shards = list((tmp_path / "results" / "fake" / RECORDS).glob("*.jsonl"))
    assert all(shard.stat().st_size for shard in shards)
    with pytest.raises(ProcessLookupError):
        os.kill(int(measuring.read_text()), 0)
