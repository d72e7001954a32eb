"""A fake of `modbench.measure.worker`: measures nothing, and ends as the row's label says."""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

spec = json.loads(sys.stdin.readline())
router = spec["cell"]["router"]
label = "machine" if router is None else router["label"]
if spec["kind"] != "machine":
    with Path(os.environ["FAKE_LOG"]).open("a") as log:
        log.write(f"{spec['kind']} {label}\n")
machine = Path(os.environ["MODBENCH_CACHE"], "machine.lock")
with machine.open("w") as lock, contextlib.suppress(BlockingIOError):
    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    Path(os.environ["FAKE_LOG"]).with_name("not alone").touch()
left = Path(os.environ["FAKE_LOG"]).with_name("broken")
if label.startswith("breaks") and not left.exists() and spec["kind"] == "time":
    left.touch()
    raise ValueError("this is broken")
if label.startswith("slow") and spec["kind"] == "time":
    left.with_name("slow").write_text(str(os.getpid()))
    time.sleep(60)
if label.startswith("killed") and spec["kind"] == "time":
    os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps({"event": "phase", "phase": "nothing"}), flush=True)
spent = dict.fromkeys(("model", "full", "executed"), 1000)
case = {
    "name": "forward",
    "phase": "forward",
    "sequences": 1,
    "tokens": 8,
    "past": 0,
    "seconds": [0.1, 0.1, 0.1],
    "loops": 1,
    "flops": dict.fromkeys(("nominal", "realised", "dispatched"), spent),
    "joules": None,
    "gpu": None,
}
parts = {"parameters": 1, "gradients": 1, "optimizer": 2, "activations": 6, "peak": 10}
measured = {
    "time": {
        "cases": [case],
        "balance": "forced",
        "compiled": False,
        "machine": {"overloaded": False},
    },
    "ceiling": {"gemm": [], "copy_bytes_per_second": 1.0, "machine": {"overloaded": False}, "gpu": None},
    "training_memory": {"measured": parts, "predicted": parts},
    "inference_memory": {"measured": parts, "predicted": parts},
    "machine": {},
}
found = {"status": "ok", "error": None, "asked_bytes": None, "measured": measured[spec["kind"]]}
if label.startswith("big"):
    found |= {"status": "oom", "error": "out of memory", "asked_bytes": 77, "measured": {}}
found["environment"] = {
    "cpu": os.environ.get("FAKE_CPU", "Imaginary CPU"),
    "gpu": None,
    "cores": 2,
    "threads": spec["threads"],
    "torch": "0",
    "dtype": "float32",
    "python": os.environ.get("FAKE_PYTHON", "3.11.7"),
    "variables": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MALLOC_TOP_PAD_")},
}
print(json.dumps(found))
