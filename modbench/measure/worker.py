"""A process that takes one measurement and ends: ``python -m modbench.measure.worker``.

The first line of its standard input is its specification in JSON: ``kind``, ``cell``, ``plugins``,
``threads``. The last line of its standard output is the result in JSON: ``status``, ``error``,
``asked_bytes``, ``environment``, ``measured``; lines before it are events. It ends when its standard
input is closed, which means that its parent has ended; kind ``peak`` takes all its input at once.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

#: Training steps whose peak memory kind ``peak`` measures.
STEPS = 2


def measure(spec: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Measure as ``spec`` says and return the result.

    Raises:
        UserError: invalid plugin, router, option or shape.
    """
    import torch

    from modbench.measure.benchmark_target import BenchmarkTarget
    from modbench.measure.clock import out_of_memory
    from modbench.measure.environment import environment
    from modbench.routing.registry import check_source, load_plugin
    from modbench.train.numerics import make_deterministic

    torch.set_num_threads(spec["threads"])
    if spec["cell"]["time"].get("deterministic"):
        make_deterministic()
    for plugin in spec["plugins"]:
        load_plugin(plugin)
    if spec["cell"]["router"] is not None:
        check_source(spec["cell"]["router"])
    subject = BenchmarkTarget.of(spec["cell"])
    found: dict[str, Any] = {"status": "ok", "error": None, "asked_bytes": None, "measured": {}}
    try:
        measured = _of_kind(spec["kind"], subject, spec["threads"], say)
    except Exception as error:
        lack = out_of_memory(error)
        if lack is None:
            raise
        found |= {"status": "oom"} | lack
    else:
        failed = measured.pop("failed", [])
        found |= {"measured": measured} | _outcome(measured.get("ran_out", []), failed)
    return found | {"environment": environment(subject.dtype)}


def _outcome(ran_out: list[dict[str, Any]], failed: list[str]) -> dict[str, Any]:
    """Status and error of a process with cases that ``ran_out`` of memory or ``failed``."""
    outcome = {}
    if ran_out:
        first = ran_out[0]
        error = _first_of(len(ran_out), f"{first['name']}: {first['error']}")
        outcome = {"status": "oom", "asked_bytes": first["asked_bytes"], "error": error}
    if failed:
        errors = filter(None, (_first_of(len(failed), failed[0]), outcome.get("error")))
        outcome |= {"status": "failed", "error": "; ".join(errors)}
    return outcome


def _first_of(cases: int, first: str) -> str:
    return first if cases == 1 else f"{cases} cases, the first {first}"


def _of_kind(
    kind: str, subject: Any, threads: int, say: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    if kind == "machine":
        return {}
    if kind in ("time", "ceiling"):
        from modbench.measure.clock import timed

        return timed(kind, subject, threads, say)
    from modbench.measure import footprint

    say({"event": "phase", "phase": "memory"})
    if kind == "peak":
        return {"peak": footprint.steps_peak(subject, STEPS)}
    if kind == "training_memory":
        measured = footprint.training_footprint(subject)
        return {"measured": measured, "predicted": footprint.predicted_training(subject)}
    assert kind == "inference_memory", kind
    measured = footprint.inference_footprint(subject)
    return {"measured": measured, "predicted": footprint.predicted_inference(subject)}


def _follow_parent() -> None:
    def watch() -> None:
        sys.stdin.read()  # returns when the parent ends; nothing more is written
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()


def main() -> int:
    from modbench.errors import FAULTS, UserError
    from modbench.routing.plugin_fault import raised
    from modbench.routing.registry import router_class

    spec = json.loads(sys.stdin.readline())
    if spec["kind"] != "peak":
        _follow_parent()
    # Output of plugins goes to the log, not between result lines.
    ours = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        found = measure(spec, lambda event: print(json.dumps(event), file=ours, flush=True))
    except UserError as error:
        print(f"modbench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except FAULTS as error:
        if spec["cell"]["router"] is None:
            raise
        traceback.print_exc()
        name = spec["cell"]["router"]["name"]
        said = raised(error, router=router_class(name))
        print(f"modbench: router '{name}' {said}", file=sys.stderr)
        return 1
    print(json.dumps(found), file=ours, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
