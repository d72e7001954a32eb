"""A command begins while a job of an earlier, killed run still works, or while a plugin hangs."""

import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from small_suite import start, write_suite

from modbench.cli.main import main
from modbench.records.store import read_suite
from modbench.sweep.claim import Claims


def test_a_run_that_an_orphan_finishes_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path, "orphans", "vanilla")
    assert main(["run", "suite.toml"]) == 0
    folder = tmp_path / "my-results" / "orphans"
    (own,) = [path for path in (folder / "runs").iterdir() if path.is_dir()]
    records = folder / "records"
    shutil.move(records, tmp_path / "kept")
    held = threading.Event()

    def orphan() -> None:
        claim = Claims().take(own)
        assert claim is not None
        held.set()
        time.sleep(3)
        shutil.copytree(tmp_path / "kept", records, dirs_exist_ok=True)
        claim.release()

    thread = threading.Thread(target=orphan)
    thread.start()
    assert held.wait(60)
    assert main(["run", "suite.toml"]) == 0
    thread.join()
    assert len(read_suite(folder).runs) == 1


@pytest.mark.processes
def test_one_interrupt_ends_a_run_whose_plugin_hangs_at_import(tmp_path: Path) -> None:
    write_suite(tmp_path, "hangs", "vanilla")
    (tmp_path / "hangs.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w')\ntime.sleep(600)\n"
    )
    # A child of a process that ignores SIGINT, as under nohup, ignores it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = start(tmp_path, "run", "suite.toml", "--plugin", "hangs.py")
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "begun").exists():
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=100)  # the import may take 120 s
    finally:
        run.kill()
    assert run.returncode == 130
    assert said == "modbench: stopped; run the same command again to continue\n"
