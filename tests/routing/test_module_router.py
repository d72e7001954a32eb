"""ModuleRouter: modules that know nothing of modbench, in the shared decoder.

B sequences, T tokens, D model width, N tokens of a batch, E experts.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbench import ModuleRouter, register_router
from modbench.audit import findings
from modbench.audit.warmed import warmed
from modbench.cli.main import main
from modbench.counting.counter import FlopCounter
from modbench.errors import UserError
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing import registry
from modbench.routing.build import build_model, meta_decoder
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=61, width=32, layers=2, heads=4, mlp_width=64)


class Attends(nn.Module):
    """A block of one head, in the style of nanoGPT: positions of its own, a mask in a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(1024, width)
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.register_buffer("seen", torch.ones(1024, 1024).tril().bool())

    def forward(self, x_BTD: Tensor) -> Tensor:
        tokens = x_BTD.shape[1]
        placed_BTD = x_BTD + self.positions(torch.arange(tokens, device=x_BTD.device))
        q_BTD, k_BTD, v_BTD = self.qkv(self.norm(placed_BTD))[:, None].chunk(3, -1)
        seen_TT = self.seen[:tokens, :tokens]
        x_BTD = x_BTD + F.scaled_dot_product_attention(q_BTD, k_BTD, v_BTD, attn_mask=seen_TT)[:, 0]
        return x_BTD + self.mlp(x_BTD)


class Loops(nn.Module):
    """Two of three experts for each token, in a loop that reads which tokens chose an expert."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        gates_NK, ids_NK = self.router(x_ND).softmax(-1).topk(2)
        out_ND = torch.zeros_like(x_ND)
        for number, expert in enumerate(self.experts):
            rows_N, places_N = torch.where(ids_NK == number)
            gated_ND = expert(x_ND[rows_N]) * gates_NK[rows_N, places_N, None]
            out_ND = out_ND.index_add(0, rows_N, gated_ND)
        return out_ND.view_as(x_BTD)


class Skips(nn.Module):
    """An MLP for the tokens whose score is above 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router, self.mlp = nn.Linear(width, 1), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        scores_BT = self.router(x_BTD)[..., 0]
        out_BTD, chosen_BT = x_BTD.clone(), scores_BT > 0
        out_BTD[chosen_BT] += self.mlp(x_BTD[chosen_BT]) * scores_BT[chosen_BT][:, None]
        return out_BTD


class MasksSkipped(Attends):
    """Attention in which tokens whose score is not above 0 have no keys."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        q_BTD, k_BTD, v_BTD = self.qkv(self.norm(x_BTD))[:, None].chunk(3, -1)
        tokens = x_BTD.shape[1]
        own_TT = torch.eye(tokens, dtype=torch.bool, device=x_BTD.device)
        seen_B1TT = self.seen[:tokens, :tokens] & (x_BTD[..., 0] > 0)[:, None, None] | own_TT
        return x_BTD + F.scaled_dot_product_attention(q_BTD, k_BTD, v_BTD, attn_mask=seen_B1TT)[:, 0]


class Centres(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.mlp(x_BTD - x_BTD.mean(0))


class Swaps(nn.Module):
    """Returns (T, B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.mlp(x_BTD).transpose(0, 1)


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registry.installed_modules():  # imported once in a process, registered once
        registry.router_class(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(registry, "_sources", dict(registry._sources))


def registered(hook: str, module: Callable[[int], nn.Module]) -> str:
    """Register a router with ``module`` in every second layer, as ``hook`` returns it."""

    def build(self: ModuleRouter, model: ModelConfig, layer: int) -> nn.Module | None:
        return module(model.width) if layer % 2 else None

    kind = type("Puts", (ModuleRouter,), {hook: build, "__module__": __name__})
    register_router("puts")(dataclass(frozen=True, kw_only=True)(kind))
    return "puts"


def failures(name: str, *only: int) -> dict[int, str]:
    """The figures of failed probes, by number; ``only`` of these probes."""
    model = warmed(SHAPE, name, {}, 0, 17)
    found = findings(model, shapes=((3, 31),), trained=(2, 17), only=only or range(1, 12))
    return {finding.probe: finding.figure for finding in found if finding.failed}


@pytest.mark.parametrize(("hook", "module"), [("block", Attends), ("feed_forward", Loops)])
def test_correct_module_passes_the_audit(hook: str, module: Callable[[int], nn.Module]) -> None:
    assert failures(registered(hook, module)) == {}


def test_count_of_a_masked_block_is_that_of_the_pairs_that_it_lets_through() -> None:
    model = build_model(SHAPE, build_router(registered("block", Attends))).train()
    tokens_BT = torch.zeros(2, 19, dtype=torch.long)
    with FlopCounter() as counter:
        model.loss(tokens_BT, tokens_BT, Context()).backward()
    stated = model.ledger(Workload.uniform(2, 19, "train"))
    assert stated.total("model") == counter.total_model
    assert stated.total("model") < stated.total("full")
    assert model.flops_source == "counted"


@pytest.mark.parametrize("module", [Skips, MasksSkipped])
def test_count_that_depends_on_values_is_refused(module: Callable[[int], nn.Module]) -> None:
    name = registered("block", module)
    with pytest.raises(UserError, match=r"layer 1: FLOPs depend on hidden states \(") as refused:
        meta_decoder(name, {}, SHAPE).ledger(Workload.uniform(2, 19))
    first, second = re.findall(r"\(([\d,]+) and ([\d,]+) in two draws\)", str(refused.value))[0]
    assert first != second


def test_module_that_looks_at_other_sequences_fails_batch_invariance() -> None:
    assert 2 in failures(registered("block", Centres), 2)


def test_module_of_another_output_is_refused_in_one_sentence() -> None:
    model = build_model(SHAPE, build_router(registered("block", Swaps)))
    said = (
        r"layer 1: Swaps returned a tensor of shape \(7, 2, 32\) .* let a module of your own around it"
    )
    with pytest.raises(UserError, match=said):
        model(torch.zeros(2, 7, dtype=torch.long), Context())


def test_padding_never_reaches_a_module() -> None:
    model = build_model(SHAPE, build_router(registered("feed_forward", Loops))).eval()
    seen = []
    model.layers[1].feed_forward.module.register_forward_hook(
        lambda module, given, out: seen.append(tuple(given[0].shape[:2]))
    )
    model(torch.zeros(3, 7, dtype=torch.long), Context(lengths_B=torch.tensor([4, 7, 4])))
    assert seen == [(2, 4), (1, 7)]


def test_block_of_the_page_passes_the_audit_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "your_block.md"
    (source,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("their_block.py").write_text(source)
    for command in commands.splitlines():
        assert main([*command.split()[1:], "--width", "64", "--layers", "2", "--sequence", "64"]) == 0
    assert re.search(r"FLOPs +counted", capsys.readouterr().out)
