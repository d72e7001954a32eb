"""A cell whose memory was being measured when the kernel had none left."""

from pathlib import Path
from typing import Any

import pytest
from test_cell_lets_go import small

from modbench.measure.memory import KilledError
from modbench.report.store import read_records
from modbench.sweep import cell as cells


def test_what_was_measured_stays_and_the_record_says_what_the_plan_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(spec: object, data: object, measured: cells.Measured, *others: object) -> None:
        measured.metrics["heldout_loss"] = 2.5
        raise KilledError("measuring memory")

    spec, data = small(tmp_path)
    monkeypatch.setattr(cells, "load", lambda config: data)
    monkeypatch.setattr(cells, "_measure", measure)
    monkeypatch.setattr(cells, "_StopFlag", lambda: lambda: False)
    monkeypatch.setattr(cells, "make_deterministic", lambda: None)
    monkeypatch.setattr(cells.torch, "set_num_threads", lambda threads: None)
    suite: dict[str, Any] = {"name": "s", "version": 1, "rank_by": "heldout_loss"}
    cells.run_cell(spec | {"suite": suite, "results": str(tmp_path / "s")}, lambda event: None)
    (record,) = read_records(tmp_path / "s")
    assert record.status == "oom"
    assert record.metrics == {"heldout_loss": 2.5}
    start = "measuring memory: killed by the kernel: out of memory, where a training step takes "
    assert str(record.error).startswith(start)
    assert str(record.error).endswith(" bytes by the plan")
