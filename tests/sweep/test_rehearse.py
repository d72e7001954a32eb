"""`modbench run SUITE --rehearse`: what would end a run later is found before anything runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modbench.errors import UserError
from modbench.ledger import Ledger, Workload
from modbench.model.decoder import Decoder
from modbench.sweep import rehearse as rehearsal
from modbench.sweep.rehearse import rehearse
from modbench.sweep.rows import Rows, resolve
from modbench.sweep.suite import load_suite
from modbench.sweep.wanted import expand
from modbench.timing.benchmark_case import BenchmarkTarget

SUITE = """
[suite]
name = "small"
[model]
width = 32
layers = 2
heads = 4
mlp_width = 64
[data]
source = "text"
path = "text.txt"
tokenizer = "bytes"
[train]
sequence = 32
batch = 4
micro_batch = 2
recompute = true
precision = "float32"
[sweep]
budgets = [1e9, 2e9]
[[schemes]]
router = "vanilla"
[[schemes]]
router = "mod"
[[schemes]]
router = "token_choice"
options = { experts = 4, top_k = 2 }
"""


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text of some length, again and again\n" * 500)
    (tmp_path / "small.toml").write_text(SUITE)
    return resolve(load_suite(str(tmp_path / "small.toml"), {}), [])


def test_each_scheme_is_rehearsed_and_nothing_is_recorded(rows: Rows, tmp_path: Path) -> None:
    said: list[str] = []
    assert rehearse(rows, (), said.append) == 0
    assert said[0] == "text 'text' is not prepared: whether it is long enough was not rehearsed"
    assert [sentence.split(":")[0] for sentence in said[1:]] == [
        "vanilla",
        "mod",
        "token_choice",
        "small",
    ]
    assert "2 steps of 32x2, held-out loss" in said[1]
    assert "FLOPs, as counted" in said[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.toml", "text.txt"]


def test_a_ledger_that_states_less_is_refused(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Decoder.ledger

    def less(self: Decoder, workload: Workload) -> Ledger:
        lengths = (workload.lengths[0] // 2, *workload.lengths[1:])
        return ledger(self, replace(workload, lengths=lengths))

    monkeypatch.setattr(Decoder, "ledger", less)
    with pytest.raises(UserError, match="ledger minus counter"):
        rehearse(rows, ("vanilla",), lambda sentence: None)


def test_a_largest_run_that_does_not_fit_the_gpu_is_refused(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are taken there, one process's part of a batch."""
    taken: list[BenchmarkTarget] = []

    def step(target: BenchmarkTarget) -> dict[str, int]:
        taken.append(target)
        if target.train.rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"peak": 3 * 2**30}

    run = expand(rows)[0].run
    monkeypatch.setattr(rehearsal, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(rehearsal, "release_memory", lambda on: None)
    monkeypatch.setattr(rehearsal, "training_footprint", step)
    assert rehearsal._weighed(run) == ", a peak of 3.0 GiB"
    ranks = replace(run, train=replace(run.train, batch=8, micro_batch=None, parallel={"data": 4}))
    assert rehearsal._weighed(ranks)
    assert [(target.config, target.train.rows) for target in taken] == [(run.model, 2)] * 2
    with pytest.raises(UserError, match=r"vanilla 32x2: a step of 4 sequences .*; lower .train. micro"):
        rehearsal._weighed(replace(run, train=replace(run.train, micro_batch=None)))
