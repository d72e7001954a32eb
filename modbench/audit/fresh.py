"""A saved model in a process of its own: one that has run nothing else, at another time.

B sequences, T tokens, V vocabulary.
"""

import copy
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modbench.audit.finding import RULES, most, seeded, unmoved
from modbench.audit.warmed import take_step
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import RoutedDecoder, build_model
from modbench.routing.registry import load_plugin, loaded_plugins
from modbench.routing.router import Router
from modbench.train.out_of_memory import failed_allocation
from modbench.typed import built

#: Seconds by which the clock of the other process is moved, one after the other: a selection may follow
#: the second, minutes, the hour, noon, the day, the month or the year.
MOVED = (0, 1, 61, 307, 613, 1_811, 3_607, 21_607, 43_211, 86_413, 259_211, 2_678_431, 34_128_031)
#: The process imports only what the audited one could, and no file of the working directory.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from modbench.audit.fresh import _answer; _answer(sys.argv[1])"
)


def can_be_imported(router: Router) -> bool:
    """Return True if another process can import the class of ``router``: one made in a function or in a
    notebook it can't."""
    kind = type(router)
    if kind.__module__ == "__main__":
        return False
    with suppress(KeyError, AttributeError):
        return attrgetter(kind.__qualname__)(sys.modules[kind.__module__]) is kind
    return False


@torch.no_grad()
def differs_in_a_fresh_process(model: RoutedDecoder, texts: tuple[Tensor, Tensor]) -> str:
    """Describe how the logits of ``model`` differ from those of its saved weights in a new process,
    which reads the second of two ``texts`` (B, T) alone and at each time of `MOVED`, or how its state
    differs after one more training step; empty if all is equal. Both run on the CPU. Raise a
    `MemoryError` if there is too little memory.

    Finds state outside the model (a global, a mutable default, a cache), and decisions that follow the
    clock or the hash of a string, which Python draws for each process."""
    model = copy.deepcopy(model).cpu().eval()
    first_BT, text_BT = (each.cpu() for each in texts)
    expected = {}
    for rule in RULES:
        model(first_BT, Context(selection=rule))
        expected[rule] = model(text_BT, Context(selection=rule))
    step_BT = first_BT[:, :33]
    state = copy.deepcopy(model.state_dict())
    _step(model, step_BT)
    job = {
        "plugins": [str(file) for file in loaded_plugins()],
        "class": (type(model.router).__module__, type(model.router).__qualname__),
        "options": model.router.options(),
        "model": asdict(model.config),
        "threads": torch.get_num_threads(),
        "state": state,
        "text": text_BT,
        "expected": expected,
        "step": step_BT,
        "stepped": model.state_dict(),
    }
    others = {"CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": str(hash("another") % 2**32)}
    with tempfile.TemporaryDirectory(prefix="modbench-audit-") as folder:
        path = Path(folder) / "model.pt"
        torch.save(job, path)
        command = [sys.executable, "-P", "-c", _START, str(path), json.dumps(sys.path)]
        run = subprocess.run(
            command,
            env=os.environ | others,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C is for this process
        )
        answer = path.with_suffix(".json")
        if answer.exists():
            return str(json.loads(answer.read_text()))
    said = (run.stderr.strip() or f"exit code {run.returncode}").splitlines()[-1]
    if run.returncode == -signal.SIGKILL or failed_allocation(RuntimeError(said)):
        raise MemoryError(f"another process with the model: {said}")
    return f"another process cannot load the saved model: {said}"


def _step(model: RoutedDecoder, text_BT: Tensor) -> None:
    with torch.enable_grad(), seeded(5, torch.device("cpu")):
        take_step(model, text_BT)


@torch.no_grad()
def _answer(path: str) -> None:
    """Runs in the other process: write what differs, next to the saved model."""
    moved = [0]
    _move_clocks(moved)
    job = torch.load(path, weights_only=True)
    torch.set_num_threads(job["threads"])
    for file in job["plugins"]:
        load_plugin(file)
    module, name = job["class"]
    kind: Any = attrgetter(name)(importlib.import_module(module))
    model = build_model(ModelConfig(**job["model"]), built("router", job["options"], kind)).eval()
    model = model.to(next(value.dtype for value in job["state"].values() if value.is_floating_point()))
    model.load_state_dict(job["state"])
    wrong = ""
    for moved[0], rule in product(MOVED, RULES):
        logits_BTV, expected_BTV = model(job["text"], Context(selection=rule)), job["expected"][rule]
        if not unmoved(logits_BTV, expected_BTV):
            when = f" with the clock {moved[0]:,} s later" if moved[0] else ""
            wrong = f"logits of the saved model ({rule}) differ by {most(logits_BTV, expected_BTV)}"
            wrong += f" in another process{when}"
            break
    moved[0] = 0
    _step(model, job["step"])
    for name, value in model.state_dict().items():
        if not wrong and not unmoved(value, job["stepped"][name]):
            wrong = f"{name} differs after a training step of the saved model in another process"
    Path(path).with_suffix(".json").write_text(json.dumps(wrong))


class Day(datetime.date):
    """A date by the clock of Python's ``time``, which `_move_clocks` moves."""

    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(time.time())


class Moment(datetime.datetime):
    """A time by that clock."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    today = now

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)


def _move_clocks(by: list[int]) -> None:
    """Move all clocks of Python by the seconds that ``by`` holds, before other modules take them."""

    def later(clock: Callable[[], Any], unit: int) -> Callable[[], Any]:
        return lambda: clock() + unit * by[0]

    def of_now(written: Callable[..., Any], now: Callable[[], Any]) -> Callable[..., Any]:
        """``written``, whose last argument is the present if it is missing or None."""

        def of(*given: Any) -> Any:
            given = tuple(each for each in given if each is not None)
            return written(*given, *(() if given and not isinstance(given[-1], str) else (now(),)))

        return of

    for name in ("time", "monotonic", "perf_counter", "process_time"):
        setattr(time, name, later(getattr(time, name), 1))
        setattr(time, f"{name}_ns", later(getattr(time, f"{name}_ns"), 10**9))
    reads, reads_ns = time.clock_gettime, time.clock_gettime_ns
    time.clock_gettime = lambda clock: reads(clock) + by[0]
    time.clock_gettime_ns = lambda clock: reads_ns(clock) + 10**9 * by[0]
    for name in ("localtime", "gmtime", "ctime"):
        setattr(time, name, of_now(getattr(time, name), lambda: time.time()))
    for name in ("asctime", "strftime"):
        setattr(time, name, of_now(getattr(time, name), lambda: time.localtime()))

    datetime.date, datetime.datetime = Day, Moment  # type: ignore[misc]
