"""Code that isn't ours: each case against a number worked out by hand."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import map as map_over
from torch._higher_order_ops.scan import scan

from modbench import FlopCounter
from modbench.errors import UserError
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router


def counted(run: Callable[[], object]) -> FlopCounter:
    with FlopCounter() as counter:
        run()
    return counter


def grad(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grouped_matmul_counts_rows_up_to_the_last_offset(dtype: torch.dtype) -> None:
    rows, banks = grad(40, 16, dtype=dtype), grad(3, 16, 32, dtype=dtype)
    offsets = torch.tensor([8, 8, 32], dtype=torch.int32)
    forward = counted(lambda: F.grouped_mm(rows, banks, offs=offsets))
    assert forward.total == 2 * 32 * 16 * 32
    both = counted(lambda: F.grouped_mm(rows, banks, offs=offsets)[:32].sum().backward())
    assert both.total == 3 * forward.total


def test_convolutions() -> None:
    image = grad(2, 4, 9, 9)
    plain, grouped = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 8, 3, groups=2, stride=2)
    turned = nn.ConvTranspose2d(4, 5, 2, stride=2)
    assert counted(lambda: plain(image)).total == 2 * 2 * 6 * 7 * 7 * 4 * 9
    assert counted(lambda: plain(image).sum().backward()).total == 3 * 2 * 2 * 6 * 7 * 7 * 4 * 9
    assert counted(lambda: grouped(image)).total == 2 * 2 * 8 * 4 * 4 * 2 * 9
    assert counted(lambda: turned(image)).total == 2 * 2 * 4 * 9 * 9 * 5 * 4
    assert counted(lambda: plain(image.detach()).sum().backward()).total == 2 * 2 * 2 * 6 * 49 * 4 * 9


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_fused_or_not(training: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    x = torch.randn(3, 7, 16)
    expected = 2 * 3 * 7 * 16 * 48 + 2 * 2 * 3 * 7 * 7 * 16 + 2 * 3 * 7 * 16 * 16
    with torch.no_grad():
        assert counted(lambda: layer(x, x, x, need_weights=False)).total == expected
        assert counted(lambda: layer(x, x, x)).total == expected


@pytest.mark.parametrize("training", [True, False])
def test_encoder_layer_fused_or_not(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=True, dropout=0.0)
    x = torch.randn(3, 7, 16)
    attention = 2 * 3 * 7 * 16 * 48 + 2 * 2 * 3 * 7 * 7 * 16 + 2 * 3 * 7 * 16 * 16
    with torch.no_grad():
        assert counted(lambda: layer.train(training)(x)).total == attention + 2 * 2 * 3 * 7 * 16 * 24


@pytest.mark.parametrize("taken", [True, False])
def test_control_flow_counts_the_branch_taken(taken: bool) -> None:
    x = torch.randn(4, 4)

    def run() -> Tensor:
        return torch.ops.higher_order.cond(
            torch.tensor(taken), lambda x: (x @ x @ x,), lambda x: (x + 1,), (x,)
        )

    assert counted(run).total == (2 * 2 * 64 if taken else 0)


def test_a_branch_taken_counts_its_backward_pass() -> None:
    x, w = grad(4, 4), grad(4, 4)

    def run() -> None:
        (y,) = torch.cond(torch.tensor(True), lambda x, w: (x * w,), lambda x, w: (x @ w,), (x, w))
        (z,) = torch.cond(torch.tensor(False), lambda x, w: (x * w,), lambda x, w: (x @ w,), (y, w))
        z.sum().backward()

    counter = counted(run)
    # The branch runs as what it is, and its backward pass is its own.
    assert counter.ledger.entries[-1, "other", "forward"].full == 128
    assert counter.ledger.entries[-1, "other", "backward"].full == 2 * 128


def test_a_scan_and_a_map_count_each_step() -> None:
    steps = torch.randn(3, 4, 4)
    scanned = counted(lambda: scan(lambda carry, y: (carry @ y, carry * 1), torch.eye(4), steps))
    assert scanned.total == 3 * 2 * 64
    assert counted(lambda: map_over(lambda y: y @ y, steps)).total == 3 * 2 * 64


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_gives_what_it_gives_uncounted(reverse: bool) -> None:
    def run() -> object:
        start, steps = (
            (torch.eye(4), torch.ones(())),
            {"y": torch.randn(3, 4, 4), "z": torch.arange(3.0)},
        )
        return scan(
            lambda carry, each: ((carry[0] @ each["y"], carry[1] * 2), (carry[0] + 1, each["z"] - 1)),
            start,
            steps,
            reverse=reverse,
        )

    found = []
    for context in (nullcontext(), FlopCounter()):
        torch.manual_seed(0)
        with context:
            found.append(run())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_loop_counts_each_turn() -> None:
    def run() -> object:
        return torch.ops.higher_order.while_loop(
            lambda turn, x: turn < 3,
            lambda turn, x: (turn + 1, x @ x),
            (torch.tensor(0), torch.randn(4, 4)),
            (),
        )

    assert counted(run).total == 3 * 2 * 64


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda: torch.addr(torch.zeros(3, 5), torch.randn(3), torch.randn(5)), 30),
        (lambda: torch.addbmm(torch.zeros(3, 7), torch.randn(2, 3, 5), torch.randn(2, 5, 7)), 420),
        (lambda: torch.zeros(3, 7).addmm_(torch.randn(3, 5), torch.randn(5, 7)), 210),
        (lambda: torch.einsum("ab,bc,cd->ad", *(torch.randn(4, 4) for _ in range(3))), 256),
        (lambda: F.one_hot(torch.tensor([0, 1]), 4).float().T @ torch.randn(2, 8), 128),
        (lambda: torch.sparse.mm(torch.eye(4).to_sparse(), torch.randn(4, 5)), 2 * 4 * 5),
        (lambda: torch.sparse.mm(torch.eye(4).to_sparse_csr(), torch.randn(4, 5)), 2 * 4 * 5),
        (
            lambda: torch._int_mm(
                torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 24, dtype=torch.int8)
            ),
            2 * 32 * 16 * 24,
        ),
    ],
    ids=["addr", "addbmm", "addmm_", "einsum-chain", "one-hot", "sparse-coo", "sparse-csr", "int8"],
)
def test_ops_beside_the_common_ones(run: Callable[[], object], flops: int) -> None:
    assert counted(run).total == flops


@pytest.mark.parametrize("name", ["vanilla", "mod"])
def test_a_model_on_meta_costs_what_it_costs_on_cpu(name: str) -> None:
    shape = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
    ledgers = []
    for device in ("cpu", "meta"):
        model = build_model(shape, build_router(name)).to(device)
        tokens_BT = torch.zeros(2, 33, dtype=torch.long, device=device)
        counter = counted(lambda m=model, t=tokens_BT: m(t, Context()).sum().backward())
        ledgers.append(counter.ledger)
    assert ledgers[0] == ledgers[1]


def test_a_custom_op_is_counted_once_it_is_registered() -> None:
    @torch.library.custom_op("modbench_test::double_matmul", mutates_args=())
    def double_matmul(x: Tensor, y: Tensor) -> Tensor:
        return x @ y * 2

    x, y = torch.randn(3, 5), torch.randn(5, 7)
    with pytest.raises(UserError, match="modbench_test::double_matmul"):
        counted(lambda: double_matmul(x, y))
    from modbench import register_flop_formula

    register_flop_formula(
        "modbench_test::double_matmul", lambda arguments, result: 2 * arguments["x"].numel() * 7
    )
    assert counted(lambda: double_matmul(x, y)).total == 210


def test_counters_nest_and_leave_nothing_behind() -> None:
    x = torch.randn(4, 4)
    with FlopCounter() as outer:
        x @ x
        with FlopCounter() as inner:
            x @ x
    x @ x
    assert (outer.total, inner.total) == (256, 128)


def test_a_counter_goes_on_when_it_is_entered_again_but_not_within_itself() -> None:
    x, counter = torch.randn(4, 4), FlopCounter()
    for _ in "ab":
        with counter:
            x @ x
    assert counter.total == 256
    with counter:
        with pytest.raises(UserError, match="is counting already"):
            counter.__enter__()
        x @ x
    assert counter.total == 384


def test_a_module_that_takes_its_shape_from_its_first_input() -> None:
    x = torch.randn(3, 5, 9)
    with FlopCounter() as counter:
        nn.LazyLinear(7)(x)
    assert counter.total == 2 * 3 * 5 * 9 * 7
    layer = nn.LazyConv1d(7, 3)
    with counter:
        layer(x).sum().backward()
    assert counter.total == 2 * 3 * 5 * 9 * 7 + 2 * (2 * 3 * 7 * 7 * 5 * 3)
