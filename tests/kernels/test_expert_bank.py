"""The expert bank's fast paths against its plain definition, and that against a loop over rows.

E experts, N rows, D model width, F hidden width.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench import kernels
from modbench.counting.counter import FlopCounter
from modbench.kernels.expert_bank import Counts, expert_bank, fast, plain
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.routing.expert_bank import ExpertBank

EXPERTS, WIDTH, HIDDEN, BEYOND = 4, 16, 24, 6
#: 63 and 1,000 rows, experts without rows, one row, none, and equal counts.
COUNTS = [[3, 0, 52, 8], [640, 128, 1, 231], [0, 0, 63, 0], [0, 1, 0, 0], [0, 0, 0, 0], [7, 7, 7, 7]]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.03}
Bank = Callable[[Tensor, Tensor, Tensor], Tensor]


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5


def weights(mlp: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    columns = 2 * HIDDEN if mlp == "swiglu" else HIDDEN
    up_ECD, down_EDF = drawn(EXPERTS, columns, WIDTH, seed=0), drawn(EXPERTS, WIDTH, HIDDEN, seed=1)
    return up_ECD.to(dtype).requires_grad_(), down_EDF.to(dtype).requires_grad_()


def results(bank: Bank, rows_ND: Tensor, *given: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    inputs = (rows_ND.clone().requires_grad_(), *given)
    out_ND = bank(*inputs)
    dy_ND = drawn(*out_ND.shape, seed=3).to(out_ND.dtype)
    return [out_ND.detach(), *torch.autograd.grad(out_ND, inputs, dy_ND)]


def assert_alike(found: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(found, truth, strict=True):
        assert one.dtype == other.dtype
        assert (one.double() - other.double()).norm() <= TOLERANCE[dtype] * other.double().norm()


def row_by_row(counts: list[int], mlp: str) -> Bank:
    def bank(rows_ND: Tensor, up_ECD: Tensor, down_EDF: Tensor) -> Tensor:
        expert_N = torch.arange(EXPERTS).repeat_interleave(torch.tensor(counts))
        out_ND = 0 * rows_ND
        for row, e in enumerate(expert_N.tolist()):
            up_C = up_ECD[e].to(rows_ND.dtype) @ rows_ND[row]
            hidden_F = F.silu(up_C[:HIDDEN]) * up_C[HIDDEN:] if mlp == "swiglu" else F.gelu(up_C)
            out_ND[row] = down_EDF[e].to(rows_ND.dtype) @ hidden_F
        return out_ND + 0 * (up_ECD.sum() + down_EDF.sum()).to(rows_ND.dtype)

    return bank


def by(kernel: Callable[..., Tensor], counts: Counts, mlp: str = "swiglu") -> Bank:
    return lambda rows_ND, up_ECD, down_EDF: kernel(rows_ND, up_ECD, down_EDF, counts, mlp)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_plain_is_row_by_row(counts: list[int], mlp: str) -> None:
    rows_ND = drawn(sum(counts) + BEYOND, WIDTH, seed=2)
    given = weights(mlp, torch.float64)
    found = results(by(plain.expert_bank, counts, mlp), rows_ND, *given)
    assert_alike(found, results(row_by_row(counts, mlp), rows_ND, *given), torch.float64)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("each", [0, 63])
def test_equal_counts_are_plain(each: int, dtype: torch.dtype, mlp: str) -> None:
    rows_ND = drawn(each * EXPERTS, WIDTH, seed=2).to(dtype)
    given = weights(mlp, torch.promote_types(dtype, torch.float32))
    truth = results(by(plain.expert_bank, [each] * EXPERTS, mlp), rows_ND, *given)
    assert_alike(results(by(expert_bank, [each] * EXPERTS, mlp), rows_ND, *given), truth, dtype)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counts", [COUNTS[1], COUNTS[2], COUNTS[4], [64, 65, 128, 63]], ids=str)
def test_blocks_are_plain(counts: list[int], dtype: torch.dtype, mlp: str) -> None:
    rows_ND = drawn(sum(counts) + BEYOND, WIDTH, seed=2).to(dtype)
    given = weights(mlp, torch.promote_types(dtype, torch.float32))
    truth = results(by(plain.expert_bank, counts, mlp), rows_ND, *given)
    assert_alike(results(by(fast.in_blocks, counts, mlp), rows_ND, *given), truth, dtype)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_counts_in_a_tensor_are_plain(counts: list[int], dtype: torch.dtype, mlp: str) -> None:
    rows_ND = drawn(sum(counts) + BEYOND, WIDTH, seed=2).to(dtype)
    given = weights(mlp, torch.float32)
    truth = results(by(plain.expert_bank, counts, mlp), rows_ND, *given)
    assert_alike(results(by(fast.grouped, torch.tensor(counts), mlp), rows_ND, *given), truth, dtype)


@pytest.fixture
def unset_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Poison what `grouped_mm` may leave unset on a GPU: rows beyond the last offset, and products of
    empty groups."""
    right = torch.ops.aten._grouped_mm.default

    class Poison(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if func is right:
                ends_E = args[2] if len(args) > 2 else (kwargs or {})["offs"]
                if out.dim() == 2:
                    out[int(ends_E[-1]) :] = torch.nan
                else:
                    out[ends_E.diff(prepend=ends_E.new_zeros(1)) == 0] = torch.nan
            return out

    with Poison():
        yield


@pytest.mark.usefixtures("unset_memory")
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("counts", COUNTS[:5], ids=str)
def test_unset_memory_reaches_nothing(counts: list[int], dtype: torch.dtype) -> None:
    rows_ND = drawn(sum(counts) + BEYOND, WIDTH, seed=2).to(dtype)
    rows_ND[sum(counts) :] = torch.nan
    given = weights("swiglu", torch.float32)
    found = results(by(fast.grouped, torch.tensor(counts)), rows_ND, *given)
    truth = results(by(plain.expert_bank, counts), rows_ND, *given)
    assert_alike(found, truth, dtype)
    for one in found[:2]:
        assert not one[sum(counts) :].any()


@pytest.mark.parametrize("kind", ["plain", "in blocks"])
def test_a_bank_is_differentiable_twice(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "BLOCK", 2)
    rows_ND = drawn(7, 2, seed=2).requires_grad_()
    up_ECD, down_EDF = (drawn(*shape, seed=1).requires_grad_() for shape in ((4, 6, 2), (4, 2, 3)))
    banks = {
        "plain": by(plain.expert_bank, [2, 0, 1, 3]),
        "in blocks": by(fast.in_blocks, [2, 0, 1, 3]),
    }
    bank = banks[kind]
    assert torch.autograd.gradcheck(bank, (rows_ND, up_ECD, down_EDF))
    assert torch.autograd.gradgradcheck(bank, (rows_ND, up_ECD, down_EDF))


def test_counts_in_a_tensor_are_differentiable_twice() -> None:
    """In bfloat16, so not by differences."""
    counts, given = [3, 0, 5, 0], weights("swiglu", torch.float32)
    rows_ND = drawn(8 + BEYOND, WIDTH, seed=2).to(torch.float32)

    def second(bank: Bank) -> list[Tensor]:
        rows = rows_ND.clone().requires_grad_()
        (first,) = torch.autograd.grad(bank(rows, *given).square().sum(), rows, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), (rows, *given)))

    found = second(by(fast.grouped, torch.tensor(counts)))
    assert_alike(found, second(by(plain.expert_bank, counts)), torch.float32)


def module(width: int = WIDTH) -> ExpertBank:
    model = ModelConfig(vocabulary=64, width=width, layers=2, heads=2, mlp_width=HIDDEN)
    part = ExpertBank(model, 0, experts=EXPERTS, width=HIDDEN)
    part.initialise(0)
    return part


@pytest.mark.parametrize("mode", ["plain", "fast"])
@pytest.mark.parametrize("frozen", [(), ("up",), ("rows",)], ids=str)
@pytest.mark.parametrize("counts", [[3, 0, 70, 7], [20] * 4, torch.tensor([3, 0, 70, 7])], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_a_bank_counts_as_its_ledger_says(
    autocast: bool, counts: Counts, frozen: tuple[str, ...], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kernels.VARIABLE, mode)
    part = module()
    for name in frozen:
        if name != "rows":
            getattr(part, name).requires_grad_(False)
    beyond = BEYOND if isinstance(counts, Tensor) else 0
    x_ND = torch.randn(80 + beyond, WIDTH).requires_grad_("rows" not in frozen)
    with FlopCounter() as counter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        part(x_ND, counts).sum().backward()
    workload = Workload.uniform(1, 10, "train", input_gradient="rows" not in frozen)
    assert counter.ledger == part.ledger(workload, 80)


def test_counts_stay_a_tensor_in_bfloat16_at_multiples_of_16_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert module().fits_grouped_mm()
        assert not module(width=20).fits_grouped_mm()
        monkeypatch.setenv(kernels.VARIABLE, "plain")
        assert not module().fits_grouped_mm()
    monkeypatch.delenv(kernels.VARIABLE)
    assert not module().fits_grouped_mm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.compile's own
@pytest.mark.parametrize("counts", [[7] * 4, [3, 0, 20, 5]], ids=str)
def test_a_compiled_bank_is_one_program(counts: list[int]) -> None:
    torch._dynamo.reset()
    part, rows_ND = module().bfloat16(), torch.randn(28, WIDTH).bfloat16()
    program = torch.compile(part, backend="aot_eager", fullgraph=True, dynamic=False)
    found_ND = program(rows_ND, torch.tensor(counts))
    torch.testing.assert_close(found_ND, part(rows_ND, counts), atol=1e-3, rtol=2e-2)


@pytest.mark.parametrize(("mode", "blocks"), [("fast", True), ("plain", False)])
def test_the_mode_selects_the_path_of_integer_counts(
    mode: str, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[int]] = []
    right = fast.in_blocks

    def in_blocks(rows_ND: Tensor, up: Tensor, down: Tensor, counts: list[int], mlp: str) -> Tensor:
        called.append(counts)
        return right(rows_ND, up, down, counts, mlp)

    monkeypatch.setattr(fast, "in_blocks", in_blocks)
    monkeypatch.setenv(kernels.VARIABLE, mode)
    bank = module().bfloat16()
    counts = [70, *[1] * (bank.experts - 1)]
    bank(torch.randn(sum(counts), bank.model.width).bfloat16(), counts)
    assert bool(called) == blocks
