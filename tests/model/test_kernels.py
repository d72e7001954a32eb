"""Hand-written backward passes against autograd's of the plain formulas, outputs and gradients.

N tokens, D model width, V vocabulary, H heads, P width of a head, F hidden width.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model import cross_entropy as parts
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.cross_entropy import cross_entropy, losses
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
