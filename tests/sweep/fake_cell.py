"""A fake of `modbench cell`: does what its label says, and appends a record."""

import json
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from modbench.report.record import CellRecord, cell_key
from modbench.report.store import ShardWriter
from modbench.sweep.child import follow_parent
from modbench.sweep.lock import cell_lock

follow_parent()
spec = json.loads(Path(sys.argv[1]).read_text())
held = cell_lock(Path(spec["folder"]))
held.__enter__()
label = spec["cell"]["router"]["label"]
marker = Path(spec["folder"], "half_way")
with open(Path(spec["results"], "started.txt"), "a") as starts:
    starts.write(f"{label} {os.environ['OMP_NUM_THREADS']}\n")
now = datetime.now(UTC).isoformat(timespec="seconds")


def stop(number: int, frame: object) -> None:
    marker.write_text("a checkpoint")
    sys.exit(130)


signal.signal(signal.SIGTERM, stop)
print("a library's chatter")
print(json.dumps({"event": "phase", "phase": "train"}), flush=True)
if label.startswith("slow") and not marker.exists():
    Path(spec["results"], f"{label}.pid").write_text(str(os.getpid()))
    time.sleep(60)
if label.startswith("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(spec["results"], f"{label}.pid").write_text(str(os.getpid()))
    time.sleep(60)
if label.startswith("crash"):
    raise RuntimeError("no such file: /home/someone/secret/data.txt")
if label.startswith("killed"):
    os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps({"event": "step", "step": 5, "steps": 5, "loss": 1.5, "flops": 10}), flush=True)
status = label.split()[0] if label.split()[0] in ("failed", "diverged", "oom") else "ok"
record = CellRecord(
    suite=spec["suite"],
    cell=spec["cell"],
    key=cell_key(spec["cell"]),
    code={"version": "0", "commit": None, "dirty": None},
    environment={"cpu": None, "gpu": None, "threads": spec["threads"], "torch": "0"},
    data={"sha256": "0", "train_tokens": 1, "heldout_tokens": 1},
    audit=[],
    metrics={},
    curve=[],
    routing={},
    status=status,
    error=None if status == "ok" else "as asked",
    started=now,
    finished=now,
)
with ShardWriter(Path(spec["results"])) as writer:
    writer.append(record)
