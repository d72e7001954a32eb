"""`modbench audit`: a line for each probe, a document for machines, and an exit code."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import modbench.audit
from modbench.audit import PROBES
from modbench.audit import warmed as audit_room
from modbench.audit.warmed import STEPS, warmed
from modbench.cli.audit import audit
from modbench.errors import UserError
from modbench.model.sizes import ShapeOptions

SMALL = ShapeOptions(vocabulary=97, width=32, layers=2, heads=2, mlp_width=64, sequence=21)

SWAPPED = """
from dataclasses import dataclass
from modbench.model.block import Block
from modbench.routing.registry import register_router
from modbench.model.layer import Layer
from modbench.routing.router import Router

@register_router("{name}")
@dataclass(frozen=True, kw_only=True)
class Swapped(Router):
    share: float = 0.1
    def build_layer(self, model, layer):
        return Mean(Block(model, layer), self.share)

class Mean(Layer):
    def __init__(self, block, share):
        super().__init__()
        self.block, self.share = block, share
    def forward(self, x_BTD, context):
        return self.block(x_BTD + self.share * x_BTD.mean(1, keepdim=True), context)
    def ledger(self, load):
        return self.block.ledger(load)
"""


@pytest.fixture(autouse=True)
def _as_it_was():
    """The command makes its process deterministic and uses one thread; this one goes on."""
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(before)
    torch.set_num_threads(threads)


def test_a_line_to_each_probe_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("mod:half", option=(("causal=aux_bce",),), shape=SMALL) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "mod:half: 3 x 63 and 2 x 21 tokens"
    assert len(lines) == len(PROBES)
    for probe, line in zip(PROBES, lines, strict=True):
        assert re.match(rf" ?{probe.number}  {probe.name} *  passed +\S", line)
        assert line.index("passed") == lines[0].index("passed")


def test_what_leaks_fails_and_is_not_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mean.py").write_text(SWAPPED.format(name="audited_mean"))
    assert audit("audited_mean", plugin=((tmp_path / "mean.py",),), shape=SMALL) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line.split()[1] for line in lines if line.startswith("FAILED")]
    assert failed == ["1", "2", "3"]
    assert all(line.endswith(" Not ranked.") for line in lines[1:4])
    assert audit("audited_mean", option=(("share=0.0",),), shape=SMALL) == 0


def test_code_that_crashes_is_told_once_and_is_no_leak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crashes = "return self.block(x_BTD[:, :, : None if torch.is_grad_enabled() else 5], context)"
    text = "import torch" + SWAPPED.format(name="audited_crash").replace(
        "return self.block(x_BTD + self.share * x_BTD.mean(1, keepdim=True), context)", crashes
    )
    (tmp_path / "crash.py").write_text(text)
    assert audit("audited_crash", plugin=((tmp_path / "crash.py",),), shape=SMALL) == 1
    said = capsys.readouterr().out
    _, first, *_, last = said.splitlines()
    line = text.splitlines().index(f"        {crashes}") + 1
    assert first.startswith("FAILED 1 causal: could not run: RuntimeError: ")
    assert f"(crash.py, line {line})" in first
    assert said.count(f"line {line}") == 1
    assert "later tokens" not in said
    assert last.startswith("FAILED 2 batch-invariant, 3 decode parity, ")
    assert last.endswith(": could not run, as probe 1. Not ranked.")


def test_a_router_that_cannot_train_is_a_user_error(tmp_path: Path) -> None:
    broken = SWAPPED.format(name="audited_broken").replace("x_BTD.mean(1, keepdim=True)", "x_BTD[:, 1:]")
    (tmp_path / "broken.py").write_text(broken)
    with pytest.raises(UserError, match=r"in a training step \(broken.py, line 2\d\)"):
        audit("audited_broken", plugin=((tmp_path / "broken.py",),), shape=SMALL)


def test_a_document_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("mod", option=(("capacity=0.5",),), shape=SMALL, format="json", seed=2) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["router"] == "mod"
    assert document["options"]["capacity"] == 0.5
    assert document["model"]["width"] == 32
    assert document["passed"] is True
    assert [probe["probe"] for probe in document["probes"]] == list(range(1, 13))
    assert set(document["probes"][0]) == {"probe", "name", "verdict", "figure", "ranks"}


def test_training_has_moved_what_training_moves() -> None:
    config = SMALL.resolved().model
    model = warmed(config, "mod", {"causal": "ema_threshold"}, 0, 21)
    assert model.layers[1].threshold.updates == STEPS
    assert not model.training


def test_memory_that_runs_out_in_a_probe_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def findings(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(modbench.audit, "findings", findings)
    with pytest.raises(UserError, match="out of memory, asked for 2,147,483,648 bytes"):
        audit("vanilla", shape=SMALL)


def test_fewer_layers_are_in_the_header(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit_room, "free_bytes", lambda _: 1_000_000)
    assert audit("mod", shape=replace(SMALL, layers=8)) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert re.search(r"tokens \([2-7] of 8 layers, for want of memory\)$", head)
