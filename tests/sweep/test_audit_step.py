"""The audit of a scheme is run once; runs refer to it and check their own trained models."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_suite import modbench_says, write_suite
from torch import Tensor, nn

import modbench
from modbench.audit import Finding, warmed
from modbench.data.config import DataConfig
from modbench.data.token_data import TokenData
from modbench.data.tokenizer import Tokenizer
from modbench.ledger import Ledger, Workload
from modbench.model.block import Block
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.layer import Layer
from modbench.records.finished import finished
from modbench.records.line import key_of
from modbench.records.run import RouterCode, Run
from modbench.records.store import read_suite
from modbench.routing.build import build_model
from modbench.routing.router import Router
from modbench.sweep.job import RunJob
from modbench.sweep.run_job import RunWork, Stage
from modbench.sweep.steps import audit as audit_step
from modbench.sweep.steps.audit import scheme_of
from modbench.sweep.steps.train import of_trained
from modbench.sweep.wanted import Wanted, left_of
from modbench.train.config import TrainConfig
from modbench.train.schedule import Schedule

RUN = Run(
    router=RouterCode(name="vanilla", options={}),
    model=ModelConfig(vocabulary=257, width=16, layers=1, heads=2),
    data=DataConfig(tokenizer="bytes"),
    train=TrainConfig(sequence=16, batch=2),
    schedule=Schedule(budgets=(10**8,)),
    seed=0,
)


def small_text() -> TokenData:
    text_N = (np.arange(4000) * 7 % 97).astype(np.uint16)
    return TokenData(
        train_N=text_N,
        heldout_N=text_N[:500],
        token_bytes_V=np.ones(257, dtype=np.int64),
        tokenizer=Tokenizer(),
        sha256=64 * "0",
    )


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))


def work_of(run: Run, folder: Path, stage: Stage | None = None) -> RunWork:
    job = RunJob(
        suite="s",
        label="vanilla",
        title="vanilla",
        folder=folder,
        results=folder / "s",
        run=run,
        train=True,
        data={},
    )
    return RunWork(job, small_text(), stage or Stage(lambda event: None))


def take_audit(run: Run, folder: Path, stage: Stage | None = None) -> RunWork:
    """Take the audit of ``run``, as its own process does."""
    work = work_of(run, folder, stage)
    audit_step.audit(work)
    return work


def with_router(**fields: Any) -> Run:
    return replace(RUN, router=replace(RUN.router, **fields))


def with_train(**fields: Any) -> Run:
    return replace(RUN, train=replace(RUN.train, **fields))


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, seed=7),
        replace(RUN, schedule=Schedule(budgets=(5,))),
        with_train(learning_rate=0.5),
    ],
    ids=["seed", "budget", "rate"],
)
def test_runs_of_one_scheme_share_an_audit(other: Run) -> None:
    assert scheme_of(other) == scheme_of(RUN)


@pytest.mark.parametrize(
    "other",
    [
        with_router(name="mod"),
        with_router(options={"capacity": 0.5}),
        with_router(plugin_sha256="ab" * 32),
        with_train(sequence=32),
    ],
    ids=["router", "options", "code", "sequence"],
)
def test_another_router_or_shape_has_an_audit_of_its_own(other: Run) -> None:
    assert key_of(scheme_of(other)) != key_of(scheme_of(RUN))


def test_other_versions_and_other_code_of_a_built_in_router_have_audits_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {key_of(scheme_of(RUN))}
    for place, name, value in (
        (torch, "__version__", "9.9"),
        (modbench, "__version__", "9.9"),
        (audit_step, "code_sha256", lambda file: "ab" * 32),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, value)
            keys.add(key_of(scheme_of(RUN)))
    assert len(keys) == 4


def test_a_stored_audit_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[dict[str, Any]] = []

    def found(model: object, **options: Any) -> Iterator[Finding]:
        run.append(options)
        yield Finding(probe=1, name="causal", verdict="passed", figure="", ranks=True)

    monkeypatch.setattr(audit_step, "findings", found)
    runs = (RUN, replace(RUN, seed=1), with_train(batch=3))
    keys = [take_audit(other, tmp_path).audit_key for other in runs]
    assert keys[0] == keys[1]
    assert {*read_suite(tmp_path / "s").audits} == {*keys}
    shapes = [(3, 63), (16, 16)]
    assert run == [
        {"shapes": shapes, "trained": (2, 16), "seed": 0},
        {"shapes": shapes, "trained": (3, 16), "seed": 0},
    ]


@pytest.mark.parametrize(("verdict", "decodes"), [("passed", True), ("failed", False)])
def test_a_stored_verdict_tells_whether_the_cache_is_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    decodes: bool,
) -> None:
    one = Finding(probe=3, name="decode parity", verdict=verdict, figure="", ranks=True)
    monkeypatch.setattr(audit_step, "findings", lambda model, **options: iter([one]))
    assert [take_audit(RUN, tmp_path).decodes for _ in range(2)] == [decodes, decodes]


def test_two_runs_that_begin_together_share_one_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, runs = threading.Barrier(2), []

    def found(model: object, **options: Any) -> Iterator[Finding]:
        runs.append(options)
        time.sleep(0.5)  # the other one now waits
        yield Finding(probe=1, name="causal", verdict="passed", figure="", ranks=True)

    def audit(seed: int) -> str | None:
        both.wait()
        return take_audit(replace(RUN, seed=seed), tmp_path).audit_key

    monkeypatch.setattr(audit_step, "findings", found)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(audit, (0, 1))
    assert first == second
    assert len(runs) == 1
    (shard,) = (path for path in (tmp_path / "s" / "records").iterdir() if path.stat().st_size)
    assert len(shard.read_text().splitlines()) == 1


def test_an_audit_of_fewer_layers_says_so_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmed, "free_bytes", lambda _: 500_000)
    run = replace(RUN, model=replace(RUN.model, layers=6))
    take_audit(run, tmp_path)
    (audit,) = read_suite(tmp_path / "s").audits.values()
    notes = {re.sub(r".* \(", "(", finding.figure) for finding in audit.audit}
    assert len(notes) == 1
    assert re.fullmatch(r"\([1-5] of 6 layers, for want of memory\)", notes.pop())


def test_three_seeds_of_a_scheme_are_audited_once(tmp_path: Path) -> None:
    write_suite(
        tmp_path,
        "seeds",
        "mod",
        model={"layers": 2},
        train={"batch": 2},
        measure={"steps": ["audit", "train", "heldout"], "heldout_tokens": 64, "curve_tokens": 64},
        sweep={"budgets": [1e8], "seeds": [0, 1, 2]},
    )
    code, out = modbench_says(tmp_path, "run", "suite.toml", "--workers", "2")
    assert code == 0, out
    folder = tmp_path / "my-results" / "seeds"
    written = [
        line for shard in folder.glob("records/*.jsonl") for line in shard.read_text().splitlines()
    ]
    assert len(written) == 1 + 3 + 3 + 1  # audit, runs, held-out losses, suite
    stored = read_suite(folder)
    assert {record.audit_key for record in stored.runs} == set(stored.audits)
    for record in stored.runs:
        (end,) = record.ends
        assert [finding.name for finding in end.audit] == ["causal", "batch-invariant", "count"]
        assert {finding.verdict for finding in end.audit} == {"passed"}
        assert record.flops_source == "closed form"
    (audit,) = stored.audits.values()
    assert [finding.probe for finding in audit.audit] == list(range(1, 13))
    wanted = [Wanted(label="mod", run=record.what) for record in stored.runs]
    assert left_of(wanted, [], finished(folder), audit=True) == []
    row = (folder / "leaderboard.csv").read_text().splitlines()[1]
    assert row.startswith("1,1,mod,ok,3,passed 12,")


@dataclass(frozen=True, kw_only=True)
class Late(Router):
    name = "late"

    def build_layer(self, model: ModelConfig, layer: int) -> Layer:
        return Peeking(Block(model, layer))


class Peeking(Layer):
    """Adds the mean of all tokens once ``mix`` exceeds a threshold that few steps do not reach."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block, self.mix = block, nn.Parameter(torch.zeros(()))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.block(x_BTD + (self.mix - 0.5).relu() * x_BTD.mean(1, keepdim=True), context)

    def ledger(self, workload: Workload) -> Ledger:
        return self.block.ledger(workload)


@pytest.mark.parametrize(("mix", "verdict"), [(0.0, "passed"), (1.0, "failed")])
def test_a_leak_that_training_opens_is_found_in_the_trained_weights(mix: float, verdict: str) -> None:
    model = build_model(ModelConfig(vocabulary=97, width=16, layers=1, heads=2), Late())
    with torch.no_grad():
        model.layers[0].mix.fill_(mix)
    causal, _ = of_trained(model)
    assert (causal.probe, causal.ranks, causal.verdict) == (1, True, verdict)
    assert causal.figure.startswith("trained weights: ")


def test_an_audit_that_is_lost_or_asked_for_later_is_run_alone(tmp_path: Path) -> None:
    """No training step is taken for it."""
    tables: dict[str, Any] = {"model": {"layers": 2}, "sweep": {"budgets": [1e8]}}
    measure = {"steps": ["train"], "heldout_tokens": 64, "curve_tokens": 64}
    write_suite(tmp_path, "later", "mod", measure=measure, **tables)
    code, out = modbench_says(tmp_path, "run", "suite.toml")
    assert code == 0, out
    folder = tmp_path / "my-results" / "later"
    for _ in range(2):
        write_suite(tmp_path, "later", "mod", measure=measure | {"steps": ["audit", "train"]}, **tables)
        code, out = modbench_says(tmp_path, "run", "suite.toml")
        assert code == 0, out
        assert "mod: train" not in out
        row = (folder / "leaderboard.csv").read_text().splitlines()[1]
        assert ",passed " in row
    assert len(read_suite(folder).runs) == 1


def test_the_seconds_of_earlier_jobs_are_those_before_the_first_process_of_this_one(
    tmp_path: Path,
) -> None:
    """A process of several that was replaced goes on from seconds that this job has spent."""
    work = work_of(RUN, tmp_path)
    for step, seconds in ((3, 2.0), (7, 9.0)):
        work.say({"event": "resumed", "step": step, "seconds": seconds})
    assert work.earlier_seconds == 2.0
