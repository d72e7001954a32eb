"""A cell that wants more memory than there is leaves a record that says how much it asked for."""

import os
import subprocess
import sys
from pathlib import Path

import modbench
from modbench.report.store import read_suite

#: The first matmul's weights alone are 3 * width * width * 4 bytes: 824 GB.
SUITE = """
[suite]
name = "wide"
[model]
width = 262_144
layers = 1
heads = 4
mlp_width = 8
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 16
batch = 1
[measure]
heldout_tokens = 16
curve_tokens = 16
downstream = []
[sweep]
budgets = [1e15]
[[schemes]]
router = "vanilla"
"""


def test_the_record_of_a_cell_that_memory_did_not_hold(tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "text.txt").write_text("\n\n".join(f"one line and another, {n}." for n in range(200)))
    done = subprocess.run(
        [sys.executable, "-m", "modbench", "run", "suite.toml"],
        cwd=tmp_path,
        env={
            **os.environ,
            "MODBENCH_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(Path(modbench.__file__).parent.parent),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (record,) = read_suite(tmp_path / "results" / "wide").cells
    assert record.status == "oom"
    assert f"asked for {3 * 262_144**2 * 4:,} bytes" in str(record.error)
    assert "Traceback" not in done.stderr
