"""Hand-written backward passes against autograd's of the plain formulas, outputs and gradients.

N tokens, D model width, V vocabulary, H heads, P width of a head, F hidden width.
"""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model import cross_entropy as parts
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.cross_entropy import cross_entropy, losses
from modbench.model.kernels import RMSNorm, angles, rotate, swiglu, widened
from modbench.routing.build import build_model
from modbench.routing.registry import build_router


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def alike(ours, plain, *inputs: Tensor) -> None:
    """Same output and same gradients of all inputs, to the rounding of float64."""
    results = []
    for function in (ours, plain):
        copies = [value.clone().requires_grad_() for value in inputs]
        out = function(*copies)
        (out * drawn(*out.shape, seed=9)).sum().backward()
        results.append([out.detach(), *(copy.grad for copy in copies)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 63, 24), (2, 1000, 16)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    def ours(x_ND: Tensor, weight_D: Tensor) -> Tensor:
        norm = RMSNorm(shape[-1], eps=1e-5).double()
        norm.weight = nn.Parameter(torch.zeros(shape[-1], dtype=torch.float64))
        del norm.weight
        norm.weight = weight_D  # no parameter, so that its gradient reaches the input
        return norm(x_ND)

    def plain(x_ND: Tensor, weight_D: Tensor) -> Tensor:
        return x_ND / (x_ND.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_D

    for scale in (1, 1e-4):  # where epsilon tells
        x_ND, weight_D = scale * drawn(*shape), drawn(shape[-1], seed=1)
        alike(ours, plain, x_ND, weight_D)
        with torch.no_grad():  # PyTorch's own
            mine, theirs = (norm(x_ND, weight_D) for norm in (ours, plain))
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_rms_norm_of_frozen_parts() -> None:
    norm = RMSNorm(8).double().requires_grad_(False)
    x_ND = drawn(5, 8).requires_grad_()
    norm(x_ND).sum().backward()
    assert x_ND.grad is not None
    assert norm.weight.grad is None
    norm.requires_grad_(True)
    norm(drawn(5, 8)).sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("sequences", [1, 3])
def test_rotation(sequences: int) -> None:
    angles_BT1P = drawn(sequences, 63, 1, 4, seed=2)

    def plain(x_BTHP: Tensor) -> Tensor:
        pairs = torch.complex(x_BTHP[..., :4], x_BTHP[..., 4:]) * torch.polar(
            torch.ones_like(angles_BT1P), angles_BT1P
        )
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    alike(lambda x: rotate(x, angles_BT1P.cos(), angles_BT1P.sin()), plain, drawn(3, 63, 5, 8))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sequences", [1, 3])
def test_rotation_by_widened_angles_is_the_same_to_the_bit(sequences: int, dtype: torch.dtype) -> None:
    positions_BT = torch.arange(sequences * 63).view(sequences, 63)
    x_BTHP, half = drawn(3, 63, 5, 8).to(dtype), angles(positions_BT, 4, 10_000.0)
    turned = rotate(x_BTHP, *widened(*half))
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate(x_BTHP, *half))
    assert not torch.equal(turned, x_BTHP)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.compile's own
@pytest.mark.parametrize("positions", [[[0, 1, 2, 3]], [[0, 7, 511], [3, 4, 5000]]], ids=str)
def test_angles_of_a_program_are_those_that_are_written(positions: list[list[int]]) -> None:
    positions_BT, half, base = torch.tensor(positions), 4, 10_000.0
    written = angles(positions_BT, half, base)
    for found, function in zip(written, (math.cos, math.sin), strict=True):
        turns = [[n * base ** (-i / half) for i in range(half)] for n in positions_BT.flatten().tolist()]
        truth = [list(map(function, angles_P)) for angles_P in turns]
        rounding = 2e-7 * positions_BT.max().item()
        torch.testing.assert_close(found.flatten(0, 2), torch.tensor(truth), atol=rounding, rtol=0)
    torch._dynamo.reset()
    called: list[str] = []

    def backend(program: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        called.extend(str(n.target) for n in program.graph.nodes if n.op.startswith("call"))
        return program

    compiled = torch.compile(angles, backend=backend, fullgraph=True, dynamic=False)
    for found, truth in zip(compiled(positions_BT, half, base), written, strict=True):
        assert found.shape == (*positions_BT.shape, 1, half)
        assert torch.equal(found, truth)
    # One op: of parts, each kernel that takes them would reckon them anew.
    assert [name for name in called if "built-in" not in name] == ["modbench.angles.default"]


def test_swiglu() -> None:
    def plain(up: Tensor) -> Tensor:
        return up[..., :7] * up[..., :7].sigmoid() * up[..., 7:]

    alike(swiglu, plain, drawn(3, 63, 14))


@pytest.mark.parametrize("tokens", [1, 7, 63])
@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_cross_entropy_in_parts(tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LOGITS", 97 * rows)
    targets_N = torch.arange(tokens) * 31 % 97
    x_ND, weight_VD = drawn(tokens, 16), drawn(97, 16, seed=1)
    alike(
        lambda x, w: 3 * cross_entropy(x, w, targets_N),
        lambda x, w: 3 * F.cross_entropy(x @ w.T, targets_N),
        x_ND,
        weight_VD,
    )
    each_N = F.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="none")
    torch.testing.assert_close(losses(x_ND, weight_VD, targets_N), each_N)
    for whole_N in (targets_N, targets_N.int()):
        with torch.no_grad():
            torch.testing.assert_close(cross_entropy(x_ND, weight_VD, whole_N), each_N.mean())


@pytest.mark.parametrize("target", [-100, -1, 9])
def test_a_target_out_of_the_vocabulary_is_no_loss(target: int) -> None:
    x_ND, weight_VD, targets_N = drawn(5, 4), drawn(9, 4), torch.tensor([0, 1, target, 2, 3])
    for learns in (False, True):
        with pytest.raises(RuntimeError, match=f"index {target} is out of bounds"):
            cross_entropy(x_ND.requires_grad_(learns), weight_VD, targets_N)


def test_a_frozen_head_or_stream_gets_no_gradient() -> None:
    x_ND, weight_VD, targets_N = drawn(5, 4), drawn(9, 4), torch.arange(5)
    x_ND.requires_grad_()
    cross_entropy(x_ND, weight_VD, targets_N).backward()
    assert x_ND.grad is not None
    assert weight_VD.grad is None


def test_under_autocast_matmuls_are_in_its_dtype_and_the_loss_is_not() -> None:
    x_ND, weight_VD = drawn(64, 32).float(), drawn(97, 32, seed=1).float()
    targets_N = torch.arange(64)
    grads = []
    for function in (
        cross_entropy,
        lambda x, w, t: F.cross_entropy(F.linear(x, w).float(), t),
    ):
        x, w = x_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = function(x, w, targets_N)
        assert loss.dtype == torch.float32
        loss.backward()
        grads.append((loss.detach(), x.grad, w.grad))
    for ours, plain in zip(*grads, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, plain, rtol=0.02, atol=2e-4)
    assert not torch.equal(grads[0][0], cross_entropy(x_ND, weight_VD, targets_N))


@pytest.mark.parametrize("name", ["vanilla", "mod", "token_choice"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_models_loss_is_that_of_its_logits_and_costs_as_much(name: str, tied: bool) -> None:
    config = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64, tied_head=tied)
    tokens_BT = torch.arange(2 * 33).view(2, 33) * 7 % 97
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    found = []
    for in_parts in (True, False):
        model = build_model(config, build_router(name), seed=1).double().train()
        context = Context()
        with FlopCounter() as counter:
            if in_parts:
                loss = model.loss(inputs_BT, targets_BT, context)
            else:
                logits_BTV = model(inputs_BT, context)
                loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
            (loss + context.trace.auxiliary_loss()).backward()
        workload = Workload(lengths=(32, 32), phase="train", counts=context.trace.counts)
        assert counter.under("model") == model.ledger(workload).total("model")
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-8)
    each_BT = model.losses(inputs_BT, targets_BT, Context())
    torch.testing.assert_close(each_BT.mean(), found[0][0], rtol=1e-9, atol=0)


def test_a_heads_gradient_is_cast_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once would take as much memory again as the gradient."""
    x_ND, weight_VD = torch.randn(6, 40).bfloat16(), torch.randn(500, 40).bfloat16()
    targets_N = torch.arange(6)
    gradients, largest = [], []
    for cast in (40 * 500, 40 * 7):
        monkeypatch.setattr(parts, "CAST", cast)
        activities = [ProfilerActivity.CPU]
        with profile(activities=activities, profile_memory=True, acc_events=True) as seen:
            gradients.append(parts._with_gradients(x_ND, weight_VD, targets_N, False, True)[2])
        largest.append(
            max(event.cpu_memory_usage for event in seen.events() if event.name == "aten::to")
        )
    assert torch.equal(*gradients)
    assert largest[0] == 4 * 40 * 500
    assert largest[1] == 4 * 6 * 500  # the logits
