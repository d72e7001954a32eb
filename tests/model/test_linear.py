"""`Linear` against its plain twin: any number of rows, with and without autocast, on a meta device."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from modbench.counting.counter import FlopCounter
from modbench.model import processor
from modbench.model.grouped import BLOCKS, FEW, IN_BLOCKS, few, multiply
from modbench.model.linear import Linear, projected

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


def test_what_fills_up_is_not_counted() -> None:
    own, _ = pair(torch.bfloat16)
    for counter in (FlopCounter(), FlopCounterMode(display=False)):
        with counter:
            own(torch.randn(33, 24, dtype=torch.bfloat16, requires_grad=True)).float().sum().backward()
        total = counter.total if isinstance(counter, FlopCounter) else counter.get_total_flops()
        assert total == 3 * 2 * 33 * 24 * 40


def test_rows_are_filled_up_where_tensors_are_shapes_alone() -> None:
    own, _ = pair(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        assert own(torch.empty(33, 24, dtype=torch.bfloat16)).shape == (33, 40)


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
    assert seen == [80]


#: (columns, inner) of a matrix small enough, one in blocks, and one that blocks do not divide.
FEW_SHAPES = [(40, 24), (IN_BLOCKS // 256, 256), (IN_BLOCKS // 256 + BLOCKS - 1, 256)]


@pytest.mark.usefixtures("either_processor")
@pytest.mark.parametrize("rows", range(1, FEW + 3))
@pytest.mark.parametrize(("columns", "inner"), FEW_SHAPES)
def test_a_few_rows_are_the_plain_layers(rows: int, columns: int, inner: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(rows, inner, generator=generator)
    weight_FD = torch.randn(columns, inner, generator=generator)
    truth_NF = (x_ND.double() @ weight_FD.double().T).float()
    own = Linear(inner, columns)
    own.load_state_dict({"weight": weight_FD})
    out_NF = torch.empty(rows, columns)
    multiply(x_ND, weight_FD.T, out_NF)
    with torch.no_grad():
        found = [own(x_ND), own(x_ND[:, None])[:, 0], projected(x_ND, weight_FD), out_NF]
        found.append(own(x_ND.T.contiguous().T))
    for one in found:
        assert one.shape == truth_NF.shape
        torch.testing.assert_close(one, truth_NF, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("either_processor")
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("columns", "inner"), FEW_SHAPES)
def test_a_few_rows_are_counted(rows: int, columns: int, inner: int) -> None:
    own = Linear(inner, columns)
    with torch.no_grad(), FlopCounter() as counter:
        own(torch.randn(rows, inner))
    assert counter.total == 2 * rows * inner * columns


def test_only_a_few_rows_of_float32_without_a_gradient_go_the_other_way_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, called = Linear(24, 40), []
    monkeypatch.setattr("modbench.model.linear.few", lambda *given: called.append(1) or few(*given))
    monkeypatch.setattr(processor, "SLOW_FEW", True)
    own(torch.randn(3, 24)).sum().backward()
    with torch.no_grad():
        own(torch.randn(FEW + 1, 24))
        with torch.autocast("cpu", torch.bfloat16):
            assert own(torch.randn(3, 24)).dtype == torch.bfloat16
        own.double()(torch.randn(3, 24, dtype=torch.float64))
        own.bfloat16()(torch.randn(3, 24, dtype=torch.bfloat16))
        assert own(torch.randn(0, 24, dtype=torch.bfloat16)).shape == (0, 40)
    assert not called
    with torch.no_grad():
        own.float()(torch.randn(FEW, 24))
        assert called == [1]
        monkeypatch.setattr(processor, "SLOW_FEW", False)
        own(torch.randn(FEW, 24))
    assert called == [1]
