"""`modbench check`: a new router's first minute."""

import re
from pathlib import Path

import pytest
import torch

from modbench.cli.main import main
from modbench.routing import registry

PLUGIN = """from dataclasses import dataclass
from modbench.model.block import Block
from modbench.model.layer import Layer
from modbench.routing.registry import register_router
from modbench.routing.router import Router

@register_router("mean")
@dataclass(frozen=True, kw_only=True)
class Mean(Router):
    share: float = 0.0
    def build_layer(self, model, layer):
        return MeanBlock(Block(model, layer), self.share)

class MeanBlock(Layer):
    def __init__(self, block, share):
        super().__init__()
        self.block, self.share = block, share
    def forward(self, x_BTD, context):
        return self.block(x_BTD + self.share * x_BTD.mean(1, keepdim=True), context)
    def ledger(self, load):
        return self.block.ledger(load)
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A working directory with the plugin and no prepared text. The command makes its process
    deterministic and registers the plugin; both are undone."""
    for name in registry.installed_modules():  # imported once in a process, registered once
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))
    monkeypatch.setenv("MODBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("mean.py").write_text(PLUGIN)
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def test_a_router_that_passes_is_told_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mean.py"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mean.py registers mean\nmean: share=0.0\n")
    forward, train = re.findall(r"^(?:forward|train) FLOPs per token +([\d,]+) +\1 +1\.000$", said, re.M)
    assert forward < train
    assert len(re.findall(r"^[ \d]\d  .* (?:passed|n/a) ", said, re.M)) == 12
    curve = re.findall(r"^step \d+ +([\d.]+) +([\d.]+)$", said, re.M)
    assert len(curve) == 5
    assert all(ours == dense for ours, dense in curve)  # the same batches and initial weights
    assert float(curve[-1][0]) < float(curve[0][0]) - 1
    assert re.search(r"^held out, causal rule +([\d.]+) +\1$", said, re.M)
    assert (
        len(re.findall(r"^layer [01] adds [\d.]+ of the norm of the residual stream$", said, re.M)) == 2
    )
    assert said.endswith("\n\nnext: modbench run quick --plugin mean.py --only mean\n")


def test_a_failed_probe_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mean.py", "--option", "share=0.1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED 1 causal: " in said
    *_, failed, last = said.splitlines()
    assert failed.startswith("failed: 1 causal, 2 batch-invariant, 3 decode parity")
    assert last == "next: fix it and check again; `modbench docs writing_a_router` has the contract"


def test_a_loss_that_is_not_finite_fails(capsys: pytest.CaptureFixture[str]) -> None:
    Path("nan.py").write_text(PLUGIN.replace('"mean"', '"nan"').replace("share: float = 0.0", ""))
    text = Path("nan.py").read_text().replace("self.share)", "float('nan'))")
    Path("nan.py").write_text(text.replace("class Mean(Router):", "class Mean(Router):\n    pass"))
    assert main(["check", "nan.py"]) == 1
    assert "failed: router 'nan': its loss is not finite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("gone.py", "plugin gone.py: there is no such file"),
        ("mean.py man", "plugin mean.py registers no 'man'; did you mean 'mean'?"),
        ("two.py --option shre=1", "router 'one' has no 'shre'; did you mean 'share'?"),
        (
            "raises.py",
            "router 'raises' raised IndexError: index 5 is out of bounds for dimension 0 with size 4 in "
            "a training step (raises.py, line 19); fix it",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(
    arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("raises.py").write_text(
        PLUGIN.replace('"mean"', '"raises"').replace("self.block(x_BTD", "self.block(x_BTD[5]")
    )
    write_two()
    assert main(["check", *arguments.split()]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert sentence in line
    assert "FLOPs" not in said.out  # of a router that does not run


def write_two(share: float = 0.0) -> None:
    """Write a file with two routers; the first one mixes the tokens of a sequence."""
    one = PLUGIN[PLUGIN.index("@register") : PLUGIN.index("class MeanBlock")]
    first = PLUGIN.replace('"mean"', '"one"').replace("share: float = 0.0", f"share: float = {share}")
    Path("two.py").write_text(first + one.replace('"mean"', '"two"').replace("Mean(", "Again("))


def test_each_router_of_a_file_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    write_two(share=0.1)
    assert main(["check", "two.py"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("two.py registers one, two\none: share=0.1\n")
    first, second = said.split("\n\ntwo: share=0.0\n")
    assert "failed: 1 causal" in first
    assert second.endswith("\n\nnext: modbench run quick --plugin two.py --only two\n")
