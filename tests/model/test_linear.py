"""`Linear` against its plain twin: any number of rows, with and without autocast, on a meta device."""

import pytest
import torch
from torch import Tensor, nn

from modbench.flops.counter import FlopCounter
from modbench.model.linear import Linear

ROWS = (1, 15, 16, 17, 48, 63, 200)


def pair(dtype: torch.dtype) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    own, plain = Linear(24, 40), nn.Linear(24, 40, bias=False)
    plain.load_state_dict(own.state_dict())
    return own.to(dtype), plain.to(dtype)


def run(layer: nn.Module, x_D: Tensor, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input, gradient of the weight."""
    x_D = x_D.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out_F = layer(x_D)
    out_F.float().square().sum().backward()
    assert x_D.grad is not None
    return out_F.detach(), x_D.grad, layer.weight.grad


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)],
)
def test_it_is_torchs(rows: int, dtype: torch.dtype, autocast: bool) -> None:
    own, plain = pair(dtype)
    x_D = torch.randn(rows, 24, dtype=dtype)
    exact = dtype == torch.float32 and not autocast
    for one, other in zip(run(own, x_D, autocast), run(plain, x_D, autocast), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        bound = 0.0 if exact else 0.02 * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=bound)


def test_without_a_gradient_the_same_comes_out() -> None:
    own, _ = pair(torch.bfloat16)
    x_BTD = torch.randn(3, 11, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        alone = own(x_BTD)
    assert alone.shape == (3, 11, 40)
    assert torch.equal(alone, own(x_BTD))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_only_what_needs_a_gradient_gets_one(frozen: str) -> None:
    own, _ = pair(torch.bfloat16)
    own.weight.requires_grad_(frozen != "weight")
    x_D = torch.randn(33, 24, dtype=torch.bfloat16, requires_grad=frozen != "input")
    own(x_D).float().sum().backward()
    assert (x_D.grad is None) == (frozen == "input")
    assert (own.weight.grad is None) == (frozen == "weight")


def test_both_parts_are_counted() -> None:
    own, _ = pair(torch.bfloat16)
    with FlopCounter() as counter:
        own(torch.randn(33, 24, dtype=torch.bfloat16, requires_grad=True)).float().sum().backward()
    assert counter.total == 3 * 2 * 33 * 24 * 40


def test_rows_of_a_step_are_multiplied_in_multiples_of_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each number of rows has a kernel of its own."""
    own, _ = pair(torch.bfloat16)
    seen = []
    plain = torch.mm

    def mm(one: Tensor, other: Tensor, **words: Tensor) -> Tensor:
        seen.append(len(one))
        return plain(one, other, **words)

    monkeypatch.setattr(torch, "mm", mm)
    with torch.no_grad():
        own(torch.randn(77, 24, dtype=torch.bfloat16))
    assert seen == [64, 13]
