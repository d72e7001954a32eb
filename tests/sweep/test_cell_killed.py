"""A cell whose memory was being measured when the kernel ran out of memory."""

from pathlib import Path
from typing import Any

import pytest
from test_cell_lets_go import small

from modbench.measure.memory import KilledError
from modbench.report.store import read_records
from modbench.sweep import cell as cells
from modbench.sweep.cell_steps import CellSteps
from modbench.sweep.crash import KILLED


def test_results_so_far_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: CellSteps, lock: object) -> None:
        self.measured.metrics["heldout_loss"] = 2.5
        raise KilledError("measuring memory")

    spec, data = small(tmp_path)
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cells, "load", lambda config: data)
    monkeypatch.setattr(CellSteps, "run", run)
    monkeypatch.setattr(cells, "make_deterministic", lambda: None)
    monkeypatch.setattr(cells.torch, "set_num_threads", lambda threads: None)
    suite: dict[str, Any] = {"name": "s", "version": 1, "rank_by": "heldout_loss"}
    cells.run_cell(spec | {"suite": suite, "results": str(tmp_path / "s")}, lambda event: None)
    (record,) = read_records(tmp_path / "s")
    assert record.status == "oom"
    assert record.metrics == {"heldout_loss": 2.5}
    assert record.error == f"measuring memory: {KILLED}"
