"""Both ways of multiplying rows sorted by expert, and the bank of experts on top of them, against loops.

E experts, N rows, F columns that come out, D columns that come in.
"""

from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model import in_one_call, processor
from modbench.model.config import ModelConfig
from modbench.model.expert_ways import AtOnce, OneByOne, Together, Way
from modbench.model.grouped import (
    FEW,
    ROWS,
    Equal,
    Grouped,
    Products,
    Slices,
    filled,
    multiply,
    weight_gradient,
)
from modbench.model.in_one_call import InOneCall
from modbench.routing.expert_bank import ExpertBank

COUNTS = [[3, 0, 70, 8], [64, 128, 1, 63], [0, 0, 200, 0], [ROWS + 1, 5, 2 * ROWS, 0]]
WAYS = ["slices", "grouped"]
BEYOND = 6


def way(name: str, counts: list[int]) -> Products:
    return Slices(counts) if name == "slices" else Grouped(torch.tensor(counts), whole=False)


def loop(x_ND: Tensor, weight_EFD: Tensor, counts: list[int]) -> Tensor:
    ends = [sum(counts[:e]) for e in range(len(counts) + 1)]
    out_NF = x_ND.new_zeros(len(x_ND), weight_EFD.shape[1])
    for e, (first, last) in enumerate(pairwise(ends)):
        for row in range(first, last):
            out_NF[row] = weight_EFD[e] @ x_ND[row]
    return out_NF


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_products_are_the_loops(name: str, dtype: torch.dtype, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_EFD = torch.randn(4, 24, 16, generator=generator)
    x_ND = torch.randn(sum(counts) + BEYOND, 16, generator=generator).to(dtype)
    dy_NF = torch.randn(len(x_ND), 24, generator=generator).to(dtype)
    wide_EFD = weight_EFD.to(dtype).double().requires_grad_()
    wide_ND = x_ND.double().requires_grad_()
    y_NF = loop(wide_ND, wide_EFD, counts)
    y_NF.backward(dy_NF.double())
    products = way(name, counts)
    found = (
        products.forward(x_ND, weight_EFD),
        products.to_inputs(dy_NF, weight_EFD),
        products.to_weights(dy_NF, x_ND, weight_EFD),
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    for one, truth in zip(found, (y_NF, wide_ND.grad, wide_EFD.grad), strict=True):
        assert truth is not None
        torch.testing.assert_close(one.double(), truth.detach(), atol=tolerance, rtol=2e-2)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32]
    assert not found[0][sum(counts) :].any()
    assert not found[1][sum(counts) :].any()


def test_what_grouped_mm_leaves_unset_of_no_rows_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Blackwell GPU."""

    def unset(dy_FN: Tensor, x_ND: Tensor, *, offs: Tensor) -> Tensor:
        product_EFD = right(dy_FN, x_ND, offs=offs)
        product_EFD[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return product_EFD

    right = F.grouped_mm
    monkeypatch.setattr(F, "grouped_mm", unset)
    counts, weight_EFD = [3, 0, 5, 0], torch.randn(4, 24, 16)
    dy_NF, x_ND = torch.randn(8, 24), torch.randn(8, 16)
    found, truth = (
        way(name, counts).to_weights(dy_NF, x_ND, weight_EFD) for name in ("grouped", "slices")
    )
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_of_equal_shares_is_that_of_slices(dtype: torch.dtype) -> None:
    weight_EFD, x_ND, dy_NF = torch.randn(4, 24, 16), torch.randn(28, 16), torch.randn(28, 24)
    x_ND, dy_NF = x_ND.to(dtype), dy_NF.to(dtype)
    found = [
        (
            way.forward(x_ND, weight_EFD),
            way.to_inputs(dy_NF, weight_EFD),
            way.to_weights(dy_NF, x_ND, weight_EFD),
        )
        for way in (Equal(), Slices([7] * 4))
    ]
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=2e-2)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [*COUNTS, [7, 7, 7, 7], [32, 32, 32, 32], [0, 0, 0, 0]], ids=str)
def test_experts_one_by_one_are_all_together(counts: list[int], dtype: torch.dtype, mlp: str) -> None:
    """What a GPU does in float32, and in equal shares, is not asked of a bank here."""
    part = bank(mlp)
    equal = len(set(counts)) == 1
    rows = sum(counts) + (0 if equal else BEYOND)
    generator = torch.Generator().manual_seed(1)
    rows_ND, dy_ND = (torch.randn(rows, 16, generator=generator).to(dtype) for _ in range(2))
    ways: list[Way] = [
        Together(Equal() if equal else Slices(counts), mlp),
        OneByOne(counts, mlp),
        AtOnce(counts, mlp, equal=equal),
    ]
    if dtype != torch.float64:  # grouped_mm takes none
        ways += [Together(Grouped(torch.tensor(counts), whole=False), mlp), InOneCall(counts, mlp)]
    found = []
    held = torch.promote_types(dtype, torch.float32)  # as under autocast
    weights = part.up.detach().to(held), part.down.detach().to(held)
    for way in ways:
        out_ND, kept = way.keeping(rows_ND, *weights)
        torch.testing.assert_close(way.forward(rows_ND, *weights), out_ND, atol=0, rtol=0)
        gradients = way.backward(dy_ND, rows_ND, kept, (held, held))
        assert [g.dtype for g in gradients if g is not None] == [dtype, held, held]
        found.append((out_ND, *gradients))
        assert not out_ND[sum(counts) :].any()
        assert gradients[0] is not None
        assert not gradients[0][sum(counts) :].any()
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.01}[dtype]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one is not None
            assert (two.double() - one.double()).norm() <= tolerance * one.double().norm()


def bank(mlp: str = "swiglu") -> ExpertBank:
    model = ModelConfig(vocabulary=64, width=16, layers=2, heads=2, mlp_width=24, mlp=mlp)  # type: ignore[arg-type]
    part = ExpertBank(model, 0, experts=4, width=24)
    part.initialise(0)
    with torch.no_grad():
        part.down.mul_(20)
    return part


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts that count as small, and that don't."""
    if request.param == "large":
        monkeypatch.setattr(in_one_call, "SMALL", 0)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("on_device", [False, True], ids=["counts", "tensor"])
def test_a_bank_and_its_gradients_are_the_experts_one_by_one(on_device: bool, mlp: str) -> None:
    part, counts = bank(mlp), [3, 0, 70, 8]
    x_ND = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y_ND = part(x_ND, torch.tensor(counts) if on_device else counts)
    dy_ND = torch.randn(y_ND.shape, generator=torch.Generator().manual_seed(2))
    found = [y_ND, *torch.autograd.grad(y_ND, (x_ND, part.up, part.down), dy_ND)]
    hidden = loop(x_ND, part.up, counts)
    if mlp == "swiglu":
        gate, value = hidden.chunk(2, -1)
        hidden = F.silu(gate) * value
    else:
        hidden = F.gelu(hidden)
    truth_ND = loop(hidden, part.down, counts)
    truth = [truth_ND, *torch.autograd.grad(truth_ND, (x_ND, part.up, part.down), dy_ND)]
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("frozen", [(), ("up",), ("down",), ("up", "down"), ("rows",)], ids=str)
@pytest.mark.parametrize("on_device", [False, True], ids=["counts", "tensor"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_a_bank_counts_as_its_ledger_says(
    autocast: bool, on_device: bool, frozen: tuple[str, ...]
) -> None:
    part, counts = bank(), [3, 0, 70, 8]
    for name in frozen:
        if name != "rows":
            getattr(part, name).requires_grad_(False)
    x_ND = torch.randn(sum(counts), 16).requires_grad_("rows" not in frozen)
    with FlopCounter() as counter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y_ND = part(x_ND, torch.tensor(counts) if on_device else counts)
        y_ND.sum().backward()
    workload = Workload.uniform(1, 10, "train", input_gradient="rows" not in frozen)
    assert counter.ledger == part.ledger(workload, sum(counts))


@pytest.mark.usefixtures("size")
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_pytorchs_own_counter_sees_what_experts_spend(autocast: bool) -> None:
    part, counts = bank(), [3, 0, 70, 8]
    x_ND = torch.randn(sum(counts), 16).requires_grad_()
    counter = FlopCounterMode(display=False)
    with counter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        part(x_ND, counts).sum().backward()
    workload = Workload.uniform(1, 10, "train")
    assert counter.get_total_flops() == part.ledger(workload, sum(counts)).total()


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_experts_in_bfloat16_keep_room_for_their_rows_and_a_tile_each_at_most(mlp: str) -> None:
    part, counts = bank(mlp), [3, 0, 70, 8]
    rows_ND = torch.randn(sum(counts), 16).bfloat16()
    with torch.no_grad():
        _, (between, _, _) = OneByOne(counts, mlp).keeping(rows_ND, part.up, part.down)
    columns = part.up.shape[1] + part.down.shape[2]
    assert (3 + 80 + 8) * columns <= between.numel() < (sum(counts) + ROWS * len(counts)) * columns


def test_a_few_rows_by_large_matrices_are_multiplied_expert_by_expert(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "SLOW_FEW", True)
    monkeypatch.setattr(in_one_call, "LARGE", 24 * 16)
    calls = []
    monkeypatch.setattr(F, "grouped_mm", lambda *_, **__: calls.append(1))
    part, counts = bank(), [3, 0, FEW, 1]
    rows_ND = torch.randn(sum(counts) + BEYOND, 16, generator=torch.Generator().manual_seed(1))
    way, truth = InOneCall(counts, "swiglu"), OneByOne(counts, "swiglu")
    with torch.no_grad():
        found_ND = part(rows_ND, counts)
        torch.testing.assert_close(found_ND, truth.forward(rows_ND, part.up, part.down))
        assert not calls
        assert not found_ND[sum(counts) :].any()
        monkeypatch.setattr(in_one_call, "LARGE", 24 * 16 + 1)
        with pytest.raises(AttributeError):  # grouped_mm gives nothing here
            way.forward(rows_ND, part.up, part.down)
        assert calls == [1]


@pytest.mark.parametrize("odd", ["width", "hidden", "half as wide", "rows", "dtype"])
def test_what_grouped_mm_does_not_take_goes_another_way(odd: str) -> None:
    # Twice 26 is a whole number of 16 bytes in float32, and so is 20, but not in bfloat16.
    width = {"width": 18, "half as wide": 20}.get(odd, 16)
    hidden = 26 if odd == "hidden" else 24
    dtype = {"dtype": torch.float64, "half as wide": torch.bfloat16}.get(odd, torch.float32)
    model = ModelConfig(vocabulary=64, width=width, layers=2, heads=1)
    part = ExpertBank(model, 0, experts=2, width=hidden).to(dtype)
    part.initialise(0)
    counts = [0, 0] if odd == "rows" else [3, 4]
    x_ND = torch.randn(sum(counts), width, dtype=dtype)
    assert not in_one_call.takes(x_ND, part.up, part.down)
    with torch.no_grad():
        truth_ND = OneByOne(counts, "swiglu").forward(x_ND, part.up, part.down)
        torch.testing.assert_close(part(x_ND, counts), truth_ND)


def test_experts_are_small_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    part, rows_ND = bank(), torch.randn(6, 16)
    monkeypatch.setattr(in_one_call, "SMALL", 6 * 48 * 16 // 4)
    assert in_one_call.takes(rows_ND, part.up, part.down)
    monkeypatch.setattr(in_one_call, "SMALL", 6 * 48 * 16 // 4 - 1)
    assert not in_one_call.takes(rows_ND, part.up, part.down)


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [0, 1, 0, 0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_row_or_none_of_any_expert_may_be_a_slice(dtype: torch.dtype, counts: list[int]) -> None:
    """To PyTorch its strides are right as they are, to grouped_mm they are not."""
    part = bank().to(dtype)
    wide_ND = torch.randn(sum(counts) + BEYOND, 17, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows_ND, dy_ND = wide_ND[:, :16], wide_ND[:, 1:]
    assert in_one_call.takes(rows_ND, part.up, part.down)
    weights, found = (part.up.detach(), part.down.detach()), []
    for way in (InOneCall(counts, "swiglu"), OneByOne(counts, "swiglu")):
        out_ND, kept = way.keeping(rows_ND, *weights)
        found.append((out_ND, *way.backward(dy_ND, rows_ND, kept, (dtype, dtype))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("odd", ["up", "down"])
def test_matrices_that_are_slices_of_wider_ones_go_another_way(odd: str) -> None:
    """grouped_mm takes no rows of any stride."""
    part, counts = bank(), [3, 0, 70, 8]
    weight = getattr(part, odd)
    wide = torch.cat((weight.detach(), torch.ones(*weight.shape[:2], 1)), dim=2)
    x_ND = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        truth_ND = part(x_ND, counts)
        setattr(part, odd, torch.nn.Parameter(wide[:, :, :-1]))
        torch.testing.assert_close(part(x_ND, counts), truth_ND)


@pytest.mark.parametrize("counts", [[3, 0, 70, 8], [64, 128, 1, 63], [68, 68, 69, 67], [256, 0, 0, 0]])
def test_experts_in_one_call_hold_as_much_whoever_has_how_many_rows(counts: list[int]) -> None:
    part = bank()
    rows_ND = torch.randn(sum(counts), 16).bfloat16()
    with torch.no_grad():
        _, (up_MC, kept_MF, *_) = InOneCall(counts, "swiglu").keeping(rows_ND, part.up, part.down)
    tiles = (ROWS - 1) * min(len(counts), len(rows_ND) // (ROWS + 1))
    assert len(up_MC) == len(kept_MF) == len(rows_ND) + tiles


@pytest.mark.parametrize("count", [*range(1, 2 * ROWS + 2), 77])
def test_what_fills_rows_up_reaches_nothing(count: int) -> None:
    """Zeros that meet infinity would be no numbers; a neighbour's rows must not be read for them."""
    generator = torch.Generator().manual_seed(0)
    x_ND, dy_NF = (torch.randn(count + 1, 16, generator=generator).bfloat16() for _ in range(2))
    weight_FD = torch.randn(16, 16, generator=generator).bfloat16()
    x_ND[count], dy_NF[count] = torch.inf, torch.nan
    out_NF, of_weight = torch.full((count + 1, 16), 7.0).bfloat16(), torch.empty(16, 16)
    rows_MD, dy_MF = filled(x_ND[:count]), filled(dy_NF[:count])
    multiply(rows_MD, weight_FD.T, out_NF[:count])
    weight_gradient(dy_MF, rows_MD, of_weight, count)
    torch.testing.assert_close(out_NF[:count], x_ND[:count] @ weight_FD.T, atol=0.1, rtol=2e-2)
    truth_FD = dy_NF[:count].float().T @ x_ND[:count].float()
    torch.testing.assert_close(of_weight, truth_FD, atol=0.1, rtol=2e-2)
    assert (out_NF[count] == 7).all()


@pytest.mark.usefixtures("size")
def test_counting_leaves_the_numbers_of_filled_rows_as_they_are() -> None:
    part, counts = bank(), [3, 0, 70, 8]
    rows_ND = torch.randn(sum(counts), 16)
    found = []
    for context in (nullcontext(), FlopCounter()):
        part.zero_grad()
        with context, torch.autocast("cpu", torch.bfloat16):
            y_ND = part(rows_ND, counts)
            y_ND.sum().backward()
        found.append((y_ND, part.up.grad, part.down.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
