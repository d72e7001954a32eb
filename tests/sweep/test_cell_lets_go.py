"""A cell holds the machine lock and pauses while another process is measured."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modbench.data.token_data import TokenData
from modbench.data.tokenizer import Tokenizer
from modbench.measure.audit import Finding
from modbench.measure.config import MeasureConfig
from modbench.measure.machine_lock import MachineLock
from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.report.store import ShardWriter
from modbench.routing.build import build_model
from modbench.sweep import cell_steps as steps
from modbench.sweep import scheme_audit
from modbench.sweep.cell_steps import CellSteps, Measured
from modbench.sweep.stage import Stage
from modbench.train.config import TrainConfig
from modbench.train.loop import Trained, train_model


def small(folder: Path) -> tuple[dict[str, Any], TokenData]:
    tokenizer = Tokenizer()
    text_N = (np.arange(4000) * 7 % 97).astype(np.uint16)
    data = TokenData(
        train_N=text_N,
        heldout_N=text_N[:500],
        token_bytes_V=np.ones(257, dtype=np.int64),
        tokenizer=tokenizer,
        sha256=64 * "0",
    )
    cell = {
        "router": {"name": "vanilla", "options": {}, "plugin_sha256": None, "label": "vanilla"},
        "model": asdict(ModelConfig(vocabulary=257, width=16, layers=1, heads=2)),
        "data": {},
        "train": asdict(TrainConfig(budget=10**8, sequence=16, batch=2)),
        "measure": asdict(MeasureConfig(heldout_tokens=64, curve_tokens=64, downstream=())),
        "seed": 0,
    }
    spec = {
        "suite": {},
        "cell": cell,
        "plugins": [],
        "results": str(folder),
        "folder": str(folder),
        "threads": 1,
    }
    return spec, data


def test_its_model_is_gone_when_memory_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[weakref.ref[Decoder]] = []
    alive: list[int] = []

    def build(*arguments: Any) -> Decoder:
        model = build_model(*arguments)
        built.append(weakref.ref(model))
        return model

    def held(*arguments: object, **options: object) -> list[Finding]:
        alive.append(sum(model() is not None for model in built))
        return [Finding(probe=9, name="count", verdict="passed", figure="", ranks=True)]

    def weighed(*arguments: object) -> dict[str, Any]:
        held()
        return {}

    monkeypatch.setattr(steps, "build_model", build)
    monkeypatch.setattr(steps, "audit_of", lambda *_: SimpleNamespace(key="k", audit=[]))
    monkeypatch.setattr(steps, "checks", held)
    monkeypatch.setattr(steps, "peak_memory", weighed)
    monkeypatch.setattr(steps, "time_model", lambda *arguments, **options: {})
    spec, data = small(tmp_path)
    lock = MachineLock(tmp_path)
    stage = Stage(lambda event: None, lambda: False, lock)
    with ShardWriter(tmp_path) as shard:
        CellSteps(spec, data, Measured(), stage, shard).run(lock)
    lock.close()
    assert alive == [1, 0]


@pytest.mark.parametrize("phase", ["train", "audit"])
def test_a_timing_need_not_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    happened: list[str] = []

    def trained(*arguments: Any, stop: Callable[[], bool], **options: Any) -> Trained:
        for _ in range(100):
            time.sleep(0.01)
            assert not stop()
        happened.append("end of train")
        return train_model(*arguments, stop=stop, **options)

    def found(*arguments: object, **options: object) -> Iterator[Finding]:
        for _ in range(100):
            time.sleep(0.01)
            yield Finding(probe=9, name="count", verdict="passed", figure="", ranks=True)
        happened.append("end of audit")

    monkeypatch.setattr(steps, "train_model", trained)
    monkeypatch.setattr(scheme_audit, "findings", found)
    monkeypatch.setattr(steps, "checks", lambda *arguments: [])
    monkeypatch.setattr(steps, "peak_memory", lambda *arguments: {})
    monkeypatch.setattr(steps, "time_model", lambda *arguments, **options: {})
    lock, other = MachineLock(tmp_path), MachineLock(tmp_path)

    def time_it() -> None:
        with other.exclusive():
            happened.append("timed")
        other.close()

    timing = threading.Thread(target=time_it, daemon=True)

    def say(event: dict[str, Any]) -> None:
        happened.append(event.get("phase", event["event"]))
        if happened.count(phase) == 1 and happened[-1] == phase:
            timing.start()

    spec, data = small(tmp_path)
    with ShardWriter(tmp_path) as shard:
        CellSteps(spec, data, Measured(), Stage(say, lambda: False, lock), shard).run(lock)
    timing.join(5)
    lock.close()
    assert happened.index(phase) < happened.index("timed") < happened.index(f"end of {phase}")
