"""Cross-entropy in parts against the plain definition, and both as a part of the model.

N tokens, D model width, V vocabulary.
"""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench import kernels
from modbench.counting.counter import FlopCounter
from modbench.kernels.cross_entropy import cross_entropy, fast, plain
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

VOCABULARY = 97


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def results(kernel: ModuleType, x_ND: Tensor, weight_VD: Tensor, autocast: bool = False) -> list[Tensor]:
    """The loss, the gradients of both inputs, and the loss of each token."""
    x_ND, weight_VD = x_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    targets_N = torch.arange(len(x_ND)) * 31 % VOCABULARY
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = kernel.cross_entropy(x_ND, weight_VD, targets_N)
        with torch.no_grad():
            each_N = kernel.cross_entropy(x_ND, weight_VD, targets_N.int(), "none")
    (3 * loss).backward()
    assert x_ND.grad is not None
    assert weight_VD.grad is not None
    assert not each_N.requires_grad
    return [loss.detach(), x_ND.grad, weight_VD.grad, each_N]


@pytest.mark.parametrize(
    ("vocabulary", "on_cpu", "on_gpu"),
    [(50_304, 1334, 10_496), (32_768, 2048, 16_384), (2_048, 32_768, 262_144), (2**28, 1, 256)],
)
def test_rows_of_a_part_follow_from_the_device(vocabulary: int, on_cpu: int, on_gpu: int) -> None:
    """On a GPU eight times as many, a multiple of what a tile of its matmuls computes."""
    assert fast.part_rows(vocabulary, torch.device("cpu")) == on_cpu
    assert fast.part_rows(vocabulary, torch.device("meta")) == on_cpu
    assert fast.part_rows(vocabulary, torch.device("cuda", 1)) == on_gpu


@pytest.mark.parametrize("tokens", [1, 63, 1000])
@pytest.mark.parametrize("rows", [1, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_parts_are_the_whole(
    dtype: torch.dtype, rows: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "LOGITS", VOCABULARY * rows)
    x_ND, weight_VD = drawn(tokens, 16, dtype=dtype), drawn(VOCABULARY, 16, seed=1, dtype=dtype)
    found, truth = (results(kernel, x_ND, weight_VD) for kernel in (fast, plain))
    wide = torch.promote_types(dtype, torch.float32)
    assert [value.dtype for value in found] == [wide, dtype, dtype, wide]
    for one, other in zip(found, truth, strict=True):
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
        assert (one.double() - other.double()).norm() <= tolerance * other.double().norm()


def test_plain_is_pytorchs() -> None:
    x_ND, weight_VD, targets_N = drawn(63, 16), drawn(VOCABULARY, 16, seed=1), torch.arange(63)
    each_N = F.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="none")
    torch.testing.assert_close(plain.cross_entropy(x_ND, weight_VD, targets_N, "none"), each_N)
    torch.testing.assert_close(plain.cross_entropy(x_ND, weight_VD, targets_N), each_N.mean())


@pytest.mark.parametrize("rows", [2, 1000])
def test_the_loss_is_differentiable_twice(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "LOGITS", 5 * rows)
    given = drawn(3, 2).requires_grad_(), drawn(5, 2, seed=1).requires_grad_()

    def loss(x_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return fast.cross_entropy(x_ND, weight_VD, torch.tensor([4, 0, 2]))

    assert torch.autograd.gradcheck(loss, given)
    assert torch.autograd.gradgradcheck(loss, given)


@pytest.mark.parametrize("target", [-100, 9])
@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_a_target_out_of_the_vocabulary_is_refused(
    mode: str, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.VARIABLE, mode)
    x_ND, weight_VD, targets_N = drawn(5, 4), drawn(9, 4), torch.tensor([0, 1, target, 2, 3])
    for reduction in ("mean", "none"):
        with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
            cross_entropy(x_ND, weight_VD, targets_N, reduction)


@pytest.mark.parametrize("rows", [10, 1000])
def test_under_autocast_the_matmul_is_in_bfloat16_and_gradients_are_summed_in_float32(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "LOGITS", VOCABULARY * rows)
    given = drawn(63, 32).float(), drawn(VOCABULARY, 32, seed=1).float()
    found, exact = results(fast, *given, autocast=True), results(fast, *given)
    truth = results(plain, *(value.bfloat16() for value in given))
    assert all(value.dtype == torch.float32 for value in found)
    assert not torch.equal(found[0], exact[0])
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_the_models_loss_is_that_of_its_logits_and_counts_as_its_ledger_says(
    mode: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.VARIABLE, mode)
    monkeypatch.setattr(fast, "LOGITS", VOCABULARY * 10)
    config = ModelConfig(
        vocabulary=VOCABULARY, width=32, layers=2, heads=4, mlp_width=64, tied_head=tied
    )
    tokens_BT = torch.arange(2 * 33).view(2, 33) * 7 % VOCABULARY
    inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
    model = build_model(config, build_router("token_choice"), seed=1).double().train()
    context = Context()
    with FlopCounter() as counter:
        loss = model.loss(inputs_BT, targets_BT, context)
        (loss + context.trace.auxiliary_loss()).backward()
    ledger = model.loss_ledger(Workload(lengths=(32, 32), phase="train", counts=context.trace.counts))
    assert counter.ledger == ledger
    again = ledger.total("executed", "recompute")
    assert again == (2 * 64 * 32 * VOCABULARY if mode == "fast" else 0)
    truth = F.cross_entropy(model(inputs_BT, Context()).flatten(0, 1), targets_BT.flatten())
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(model.losses(inputs_BT, targets_BT, Context()).mean(), truth)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.compile's own
@pytest.mark.parametrize("rows", [10, 1000])
def test_a_compiled_loss_is_one_program(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "LOGITS", VOCABULARY * rows)
    torch._dynamo.reset()
    x_ND, weight_VD, targets_N = drawn(63, 16), drawn(VOCABULARY, 16, seed=1), torch.arange(63)
    program = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True, dynamic=False)
    found = program(x_ND.requires_grad_(), weight_VD.requires_grad_(), targets_N)
    torch.testing.assert_close(found, plain.cross_entropy(x_ND, weight_VD, targets_N))
    found.backward()
