"""Which parameters Muon trains, how it moves banks of matrices, and what a step of it costs."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modbench.counting.counter import FlopCounter
from modbench.data.batches import Batches
from modbench.hf.models import model_of
from modbench.ledger import CONVENTIONS, Workload
from modbench.model.config import ModelConfig
from modbench.model.language_model import LanguageModel
from modbench.model.shape import TRANSFORMERS, HubConfig
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouter
from modbench.routing.registry import build_router, preset_options, register_router, router_names
from modbench.train import loop
from modbench.train.config import TrainConfig
from modbench.train.counted import flops_per_step
from modbench.train.loop import train_model
from modbench.train.optimizer import (
    BankMuon,
    build_optimizer,
    muon_parameters,
    optimizer_flops_per_token,
    optimizer_ledger,
)
from modbench.train.schedule import Schedule
from modbench.train.step import training_step

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, mlp_width=288)
MUON = TrainConfig(sequence=32, batch=2, learning_rate=1e-2, optimizer="muon", precision="float32")
TEXT_N = (np.arange(4000) * 7 % 97).astype(np.uint16)
FAMILY = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
FAMILY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}


class Odd(nn.Module):
    """An MLP whose parameters no built-in one has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 24)
        self.rows = nn.ParameterList([nn.Parameter(torch.randn(24, width))])
        self.down = nn.Linear(24, width, bias=False)
        self.heads = nn.Parameter(torch.randn(2, 2, 8, 8))
        self.table = nn.Embedding(5, width)
        self.taps = nn.Conv1d(width, width, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(1, width))
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        self.experts_bias = nn.Parameter(torch.zeros(8, width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        up = self.gate(x_BTD).sigmoid() * (x_BTD @ self.rows[0].T)
        return self.down(up) * self.scale * self.heads.mean()


@register_router("odd_parameters")
@dataclass(frozen=True, kw_only=True)
class OddRouter(DepthRouter):
    def scorer(self, model: ModelConfig) -> nn.Module:
        return nn.Sequential(nn.Linear(model.width, 8), nn.GELU(), nn.Linear(8, 1), nn.Flatten(-2))

    def feed_forward(self, model: ModelConfig, layer: int) -> nn.Module:
        return Odd(model.width)


def built(scheme: str, shape: ModelConfig = SHAPE) -> LanguageModel:
    return build_model(shape, build_router(*preset_options(scheme)), seed=1)


def hub(family: str, **keys: Any) -> LanguageModel:
    config = {"model_type": family, **FAMILY, **keys}
    return model_of(HubConfig(vocabulary=97, width=32, layers=2, config=config), TRANSFORMERS, {})


def names(model: LanguageModel) -> set[str]:
    """The last names of the parameters that Muon trains, without ``weight``."""
    chosen = {*map(id, muon_parameters(model))}
    parts = (name.removesuffix(".weight") for name, p in model.named_parameters() if id(p) in chosen)
    return {part.rpartition(".")[2] for part in parts}


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    source = Batches(TEXT_N, sequence=32, batch=2, seed=1)
    yield from map(source.step, range(10))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("vanilla", {"qkv", "out", "up", "down"}),
        ("mod", {"qkv", "out", "up", "down"}),
        ("token_choice:deepseek_v3", {"qkv", "out", "up", "down"}),
        ("mode_staged", {"qkv", "out", "up", "down"}),
        ("mixture_of_recursions", {"qkv", "out", "up", "down"}),
        ("odd_parameters", {"qkv", "out", "gate", "0", "down", "heads"}),
    ],
)
def test_matrices_of_blocks_and_banks_are_muons(scheme: str, expected: set[str], tied: bool) -> None:
    model = built(scheme, replace(SHAPE, tied_head=tied, qk_norm=True))
    assert names(model) == expected
    adamws = {*model.parameters()} - {*muon_parameters(model)}
    for name, parameter in model.named_parameters():
        scores = "router" in name or "predictor" in name
        if scores or not name.startswith("layers.") or parameter.dim() < 2:
            assert parameter in adamws, name


@pytest.mark.filterwarnings("ignore:config of")
@pytest.mark.parametrize(
    ("family", "keys", "expected"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, {"c_attn", "c", "c_fc"}),
        ("llama", {}, {*"qkvo", "gate", "up", "down"}),
        ("mixtral", EXPERTS, {*"qkvo", "gate_up", "down"}),
        ("gpt_oss", EXPERTS | {"head_dim": 8}, {*"qkvo", "gate_up", "down"}),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}, {*"qkv", "out", "fc1", "fc2"}),
    ],
)
def test_matrices_of_models_of_transformers_are_muons(
    family: str, keys: dict[str, Any], expected: set[str]
) -> None:
    model = hub(family, **keys)
    assert {name.removesuffix("_proj") for name in names(model)} == expected


@pytest.mark.parametrize("shape", [(4, 24, 40), (4, 40, 24), (2, 2, 16, 16), (3, 5, 2)])
def test_a_bank_moves_as_its_matrices_do_under_torchs_muon(shape: tuple[int, ...]) -> None:
    """Within 5 % of the largest step, since a processor's batched matmuls in bfloat16 may round
    differently; where they do not, to the bit."""
    generator = torch.Generator().manual_seed(0)
    bank = nn.Parameter(torch.randn(shape, generator=generator) / 20)
    matrices = [nn.Parameter(matrix.clone()) for matrix in bank.detach().flatten(0, -3)]
    ours = BankMuon([{"params": [bank]}], lr=0.02, weight_decay=0.1)
    adjusted = "match_rms_adamw"
    theirs = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn=adjusted)
    start = bank.detach().clone()
    for step in range(4):
        bank.grad = torch.randn(shape, generator=generator)
        bank.grad[0] *= step != 0  # no token of a batch may be routed to an expert
        for matrix, gradient in zip(matrices, bank.grad.flatten(0, -3), strict=True):
            matrix.grad = gradient.clone()
        ours.step()
        theirs.step()
        largest = (bank.detach() - start).abs().max()
        moved = torch.stack([matrix.detach() for matrix in matrices]).view(shape)
        assert (bank.detach() - moved).abs().max() <= 0.05 * largest
    assert largest > 0.01


@pytest.mark.parametrize("scheme", [*router_names(), "odd_parameters"])
def test_a_steps_flops_are_those_counted(scheme: str) -> None:
    """Of a whole training step, the optimizer's included, under each convention."""
    model, data = built(scheme), batches()
    optimizer = build_optimizer(model, MUON)
    training_step(model, optimizer, MUON, next(data), torch.float32)
    with FlopCounter() as counter:
        _, (trace,) = training_step(model, optimizer, MUON, next(data), torch.float32)
    update = optimizer_ledger(model, MUON)
    passes = model.loss_ledger(Workload.uniform(2, 32, "train", counts=trace.counts))
    for convention in CONVENTIONS:
        assert (passes + update).total(convention) == counter.under(convention), convention
    assert counter.ledger.by_component("executed")["optimizer"] == update.total("executed") > 0
    assert update.total("model") == update.total("full") == 0


def test_a_matrix_of_known_shape_costs_what_its_five_iterations_do() -> None:
    model = built("vanilla", replace(SHAPE, layers=1))
    # (96, 32), (32, 32), (576, 32) and (32, 288): the shorter side is 32 in each.
    assert [tuple(p.shape) for p in muon_parameters(model)] == [(96, 32), (32, 32), (576, 32), (32, 288)]
    expected = sum(5 * (2 * (2 * 32 * 32 * n) + 2 * 32**3) for n in (96, 32, 576, 288))
    assert optimizer_ledger(model, MUON).total("executed") == expected
    assert optimizer_flops_per_token(model, MUON) == expected / (2 * 32)
    assert optimizer_flops_per_token(model, replace(MUON, batch=8)) == expected / (8 * 32)
    # Each process takes the whole step.
    ranks = replace(MUON, batch=8, parallel={"data": 2})
    assert optimizer_flops_per_token(model, ranks) == 2 * expected / (8 * 32)
    assert optimizer_flops_per_token(model, replace(MUON, optimizer="adamw")) == 0


def test_one_rate_moves_both_kinds_of_parameters_by_the_same_root_mean_square() -> None:
    """A first step of AdamW moves each number by the rate; Muon's has a fifth of that, as AdamW's later
    steps have (Liu et al. 2025, section 2.2)."""
    model = built("token_choice")
    optimizer = build_optimizer(model, replace(MUON, weight_decay=0.0))
    before = {p: p.detach().clone() for p in model.parameters()}
    chosen = {*muon_parameters(model)}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter, start in before.items():
        root = (parameter.detach() - start).square().mean().sqrt() / MUON.learning_rate
        low, high = (0.1, 0.3) if parameter in chosen else (0.9, 1.1)
        assert low < root < high


@pytest.mark.parametrize(("stated", "ratio"), [(None, 1.0), (5e-2, 5.0)])
def test_the_schedule_scales_both_rates(
    stated: float | None, ratio: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []

    def step(model: LanguageModel, optimizer: Any, *arguments: Any, **more: Any) -> Any:
        rates.append([group["lr"] for group in optimizer.param_groups])
        return training_step(model, optimizer, *arguments, **more)

    monkeypatch.setattr(loop, "training_step", step)
    model, train = built("token_choice"), replace(MUON, muon_learning_rate=stated)
    train_model(
        model,
        Batches(TEXT_N, sequence=32, batch=2, seed=1),
        train,
        Schedule(budgets=(6 * flops_per_step(model, train),)),
        dtype=torch.float32,
        evaluate=lambda model: 1.0,
        folder=tmp_path,
        say=lambda event: None,
    )
    assert len({of_step[0] for of_step in rates}) == 6
    for muon, bank, matrices, others in rates:
        assert muon == bank == pytest.approx(ratio * matrices)
        assert matrices == others
