"""Ops other than those of a transformer, and transformations of programs: each by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from modbench import FlopCounter, register_flop_formula
from modbench.counting.formulas import FORMULAS
from modbench.errors import UserError


def counted(run: Callable[[], object]) -> FlopCounter:
    with FlopCounter() as counter:
        run()
    return counter


def grad(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def offsets(*ends: int) -> Tensor:
    return torch.tensor(ends, dtype=torch.int32)


def both(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Forward alone, and with the backward pass."""
    return counted(run).total, counted(lambda: run().square().sum().backward()).total


@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda: torch.baddbmm(grad(2, 3, 7), grad(2, 3, 5), grad(2, 5, 7)), 2 * 2 * 3 * 5 * 7),
        (lambda: torch.tensordot(grad(3, 4, 5), grad(4, 5, 6), 2), 2 * 3 * 20 * 6),
        (lambda: F.grouped_mm(grad(16, 40), grad(40, 32), offs=offsets(8, 8, 40)), 2 * 16 * 40 * 32),
        (lambda: F.grouped_mm(grad(3, 16, 40), grad(40, 32), offs=offsets(8, 8, 32)), 2 * 16 * 40 * 32),
        (lambda: nn.ConvTranspose3d(2, 3, 2)(grad(1, 2, 3, 3, 3)), 2 * 2 * 27 * 3 * 8),
        (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=1)(grad(2, 4, 9, 9)), 2 * 2 * 6 * 49 * 4 * 9),
    ],
    ids=[
        "baddbmm",
        "tensordot",
        "grouped-2d-2d",
        "grouped-3d-2d",
        "transposed-3d",
        "dilated",
    ],
)
def test_two_operands_cost_twice_as_much_backward(run: Callable[[], Tensor], flops: int) -> None:
    assert both(run) == (flops, 3 * flops)


@pytest.mark.parametrize("left", [True, False])
def test_a_triangular_solve_is_half_a_matmul_and_one_more_backward(left: bool) -> None:
    """Five unknowns for each of 4 right-hand sides, in broadcast batches of 2 and 3; the gradient of the
    triangle is a matmul, and the right-hand side's a solve."""
    batch, size, sides = 2 * 3, 5, 4
    triangle = (torch.eye(size).expand(2, 1, size, size) + 0.1).tril().requires_grad_()
    right = grad(1, 3, *((size, sides) if left else (sides, size)))

    def solve() -> Tensor:
        return torch.linalg.solve_triangular(triangle, right, upper=False, left=left)

    flops = batch * size * size * sides
    assert both(solve) == (flops, flops * (1 + 1 + 2))
    right.requires_grad_(False)
    assert both(solve) == (flops, flops * (1 + 1 + 2))
    triangle.requires_grad_(False)
    right.requires_grad_()
    assert both(solve) == (flops, flops * (1 + 1))
    vectors = torch.vmap(
        lambda a, b: torch.linalg.solve_triangular(a, b, upper=True, unitriangular=True)
    )
    assert counted(lambda: vectors(torch.randn(7, 3, 3), torch.randn(7, 3, 1))).total == 7 * 9


def test_a_bilinear_form() -> None:
    """Per output: (4, 5) @ (5, 6), and 4 products of 6. Backward the larger matmul for each operand."""
    layer = nn.Bilinear(5, 6, 7)
    x, y = grad(4, 5), grad(4, 6)
    forward = 7 * (2 * 4 * 5 * 6 + 2 * 4 * 6)
    assert both(lambda: layer(x, y)) == (forward, forward + 7 * 3 * 2 * 4 * 5 * 6)


def test_recurrent_layers() -> None:
    gates, steps = 3, 4
    gru = nn.GRU(5, 6, batch_first=True)
    once = 2 * 2 * steps * gates * 6 * (5 + 6)
    # The first state is no parameter, but its gradient is computed with the others'.
    assert both(lambda: gru(grad(2, steps, 5))[0]) == (once, 3 * once - 2 * 2 * gates * 6 * 6)
    assert counted(lambda: nn.RNN(5, 6)(torch.randn(3, 2, 5))).total == 2 * 2 * 3 * 6 * (5 + 6)
    assert counted(lambda: nn.LSTMCell(5, 6)(torch.randn(2, 5))).total == 2 * 2 * 24 * (5 + 6)
    deep = nn.LSTM(5, 6, num_layers=2, bidirectional=True)
    layers = 2 * 24 * (5 + 6) + 2 * 24 * (12 + 6)
    assert counted(lambda: deep(torch.randn(3, 2, 5))).total == 2 * 3 * 2 * layers


def test_distances_by_a_matmul_of_two_more_columns_or_one_by_one() -> None:
    many = 2 * 30 * 40 * (5 + 2)
    assert counted(lambda: torch.cdist(torch.randn(30, 5), torch.randn(40, 5))).total == many
    x, y = grad(30, 5), grad(40, 5)
    assert counted(lambda: torch.cdist(x, y).sum().backward()).total == many + 2 * 2 * 30 * 40 * 5
    assert counted(lambda: torch.cdist(torch.randn(3, 5), torch.randn(4, 5))).total == 0
    asked = "use_mm_for_euclid_dist"
    few = counted(lambda: torch.cdist(torch.randn(3, 5), torch.randn(4, 5), compute_mode=asked))
    assert few.total == 2 * 3 * 4 * (5 + 2)


@pytest.mark.parametrize(
    "run",
    [
        lambda x: torch.linalg.inv(x),
        lambda x: torch.linalg.svd(x),
        lambda x: torch.linalg.solve(x, x),
    ],
    ids=["inv", "svd", "solve"],
)
def test_decompositions_are_not_known(run: Callable[[Tensor], object]) -> None:
    with pytest.raises(UserError, match="are not known; register them with"):
        counted(lambda: run(torch.eye(3)))


def test_vmap_and_functional_gradients() -> None:
    vmapped = counted(lambda: torch.func.vmap(torch.mm)(torch.randn(6, 3, 4), torch.randn(6, 4, 5)))
    assert vmapped.total == 6 * 2 * 3 * 4 * 5
    w, x = torch.randn(4, 5), torch.randn(3, 4)

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (x @ w).square().sum()

    once = 2 * 3 * 4 * 5
    assert counted(lambda: torch.func.grad(loss)(w, x)).total == 2 * once
    assert counted(lambda: torch.func.grad(loss, argnums=(0, 1))(w, x)).total == 3 * once
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    assert counted(lambda: each(w, torch.randn(6, 3, 4))).total == 6 * 2 * once
    v = torch.randn(4)
    jacobian = counted(lambda: torch.func.jacrev(lambda v: w.t() @ v)(v))
    assert jacobian.total == 2 * 4 * 5 + 5 * 2 * 4 * 5  # one backward pass for each of 5 outputs


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_costs_a_matmul_for_each_operand() -> None:
    """MKL sees them, too: a tangent that isn't there is a matrix of zeros."""
    x, w, once = torch.randn(3, 4), torch.randn(4, 5), 2 * 3 * 4 * 5

    def run(*moving: str) -> None:
        with forward_ad.dual_level():
            dual = {"x": x, "w": w}
            for name in moving:
                dual[name] = forward_ad.make_dual(dual[name], torch.randn_like(dual[name]))
            dual["x"] @ dual["w"]

    for moving in (("x",), ("w",), ("x", "w")):
        assert counted(lambda m=moving: run(*m)).total == 3 * once


def test_under_autocast_and_inference_mode() -> None:
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert counted(lambda: F.linear(grad(3, 4), grad(5, 4)).sum().backward()).total == 3 * 120
    with torch.inference_mode():
        assert counted(lambda: F.linear(x, w, torch.randn(5))).total == 120
        assert counted(lambda: torch.randn(2, 3, 4) @ w.t()).total == 240
        assert counted(lambda: torch.einsum("ij,kj->ik", x, w)).total == 120
        assert counted(lambda: nn.Bilinear(4, 4, 2)(x, x)).total == 2 * (2 * 3 * 16 + 2 * 3 * 4)
        assert counted(lambda: nn.Conv2d(4, 6, 3)(torch.randn(2, 4, 9, 9))).total == 42336


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_leaves_padding_out_of_its_matmuls() -> None:
    """Nested tensors: rows that are there, but scores of all, padded to the longest."""
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, hidden = torch.randn(3, 7, 16), torch.arange(7) >= torch.tensor([[7], [4], [2]])
    rows = 2 * (16 * 64 + 2 * 16 * 24)
    with torch.no_grad():
        counter = counted(lambda: encoder(x, src_key_padding_mask=hidden))
        unpadded = counted(lambda: encoder(x))
    assert unpadded.total == unpadded.total_model == 2 * (21 * rows + 4 * 16 * 3 * 49)
    assert counter.total == counter.executed == 2 * (13 * rows + 4 * 16 * 3 * 49)
    assert counter.total_model == 2 * (13 * rows + 4 * 16 * (49 + 16 + 4))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_jagged_tensors_count_by_what_is_there() -> None:
    parts = [torch.randn(3, 4, 8), torch.randn(5, 4, 8)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    weight = grad(16, 8)
    once = 2 * 32 * 8 * 16
    assert counted(lambda: F.linear(x, weight).values().square().sum().backward()).total == 3 * once
    y = x.detach().transpose(1, 2)
    attention = counted(lambda: F.scaled_dot_product_attention(y, y, y))
    assert attention.total == 4 * 4 * 8 * (9 + 25)
    strided = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
    assert counted(lambda: F.linear(strided, weight)).total == 2 * 8 * 8 * 16


@pytest.mark.parametrize(
    "run",
    [
        lambda: nn.EmbeddingBag(10, 4)(torch.tensor([1, 2, 3]), torch.tensor([0, 2])).sum().backward(),
        lambda: F.interpolate(grad(1, 1, 4, 4), scale_factor=2, mode="bilinear").sum().backward(),
        lambda: torch.relu_(torch.randn(3)).add_(1),
        lambda: torch.add(torch.ones(3), 1, out=torch.empty(3)),
        lambda: torch.ops.aten.relu.out(torch.ones(3), out=torch.empty(3)),
        lambda: F.cosine_similarity(grad(3, 4), grad(3, 4)).sum().backward(),
    ],
    ids=["bag", "bilinear-resize", "in-place", "out", "untagged-out", "cosine"],
)
def test_what_multiplies_no_matrices_costs_nothing(run: Callable[[], object]) -> None:
    assert counted(run).total == 0


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda s, d: s @ d[:, 0], 2 * 3),
        (lambda s, d: d.T @ s, 2 * 3 * 10),
        (lambda s, d: torch.addmm(torch.zeros(8, 10), s.to_sparse_csr(), d), 2 * 3 * 10),
        (lambda s, d: s.to_dense().to_sparse_bsr((2, 2)) @ d, 2 * 2 * 4 * 10),
        (lambda s, d: torch.sspaddmm(torch.zeros(8, 10).to_sparse(), s, d), 2 * 3 * 10),
    ],
    ids=["vector", "dense-sparse", "addmm", "bsr", "sspaddmm"],
)
def test_sparse_operands_cost_what_they_hold(run, flops: int) -> None:
    # Three elements of 8 x 8, in two blocks of 2 x 2.
    sparse = torch.zeros(8, 8)
    sparse[0, 0] = sparse[0, 1] = sparse[5, 3] = 1.0
    with FlopCounter() as counter:
        run(sparse.to_sparse(), torch.randn(8, 10))
    assert counter.total == flops


def test_two_sparse_operands_are_refused() -> None:
    one = torch.eye(4).to_sparse()
    with pytest.raises(UserError, match=r"two sparse matrices|_sparse_sparse_matmul"), FlopCounter():
        one @ one


@pytest.mark.parametrize("matrix_trained", [True, False])
@pytest.mark.parametrize("vector_trained", [True, False])
def test_products_with_a_vector_have_their_gradients_counted(
    matrix_trained: bool, vector_trained: bool
) -> None:
    if not (matrix_trained or vector_trained):
        return
    w = torch.randn(3, 4, requires_grad=matrix_trained)
    x = torch.randn(4, requires_grad=vector_trained)
    for run in (lambda: w @ x, lambda: torch.addmv(torch.zeros(3), w, x)):
        with FlopCounter() as counter:
            run().sum().backward()
        assert counter.total == 24 * (1 + matrix_trained + vector_trained)


@pytest.mark.parametrize(
    ("op", "formula", "words"),
    [
        ("mm", lambda arguments, result: 0, "'mm' is no op's name"),
        (7, lambda arguments, result: 0, "7 is no op's name"),
        (torch.ops.aten.mm.default, lambda arguments, result: 0, "already has a FLOP formula"),
    ],
)
def test_a_formula_that_can_not_count_is_refused(op, formula, words: str) -> None:
    with pytest.raises(UserError, match=words):
        register_flop_formula(op, formula)


@pytest.mark.parametrize("gives", [2.5, -5])
def test_a_formula_that_gives_no_count_is_named(gives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMULAS, "aten::_fft_r2c", lambda arguments, result: gives)
    with (
        pytest.raises(UserError, match=rf"op 'aten::_fft_r2c' gave {gives}; it must give"),
        FlopCounter(),
    ):
        torch.fft.rfft(torch.randn(8))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_sampled_products_cost_what_they_store() -> None:
    pattern, left, right = torch.eye(8).to_sparse_csr(), grad(8, 4), grad(4, 8)

    def run() -> Tensor:
        return torch.sparse.sampled_addmm(pattern.clone().requires_grad_(), left, right).values()

    assert both(run) == (2 * 8 * 4, 3 * 2 * 8 * 4)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyOptions"), reason="this PyTorch has no such op")
@pytest.mark.parametrize("trained", [(True, True), (False, True)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunked_cross_entropy_costs_its_logits_and_their_gradients(
    reduction: str, trained: tuple[bool, bool]
) -> None:
    x, w = (torch.randn(rows, 8, requires_grad=on) for rows, on in zip((6, 11), trained, strict=True))
    once = 2 * 6 * 8 * 11

    def run() -> Tensor:
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=3)
        return F.linear_cross_entropy(x, w, torch.arange(6), options=options, reduction=reduction)

    with torch.no_grad():
        assert counted(run).total == once
    if reduction == "none":  # computes the logits again in the backward pass, and two dot products
        assert counted(lambda: run().sum().backward()).total == once * (2 + sum(trained)) + 2 * 2 * 6
    else:
        assert counted(lambda: run().backward()).total == once * (1 + sum(trained))


def test_complex_numbers_cost_2_in_a_matmul_and_6_in_a_convolution() -> None:
    """PyTorch runs a convolution of complex numbers as three real ones."""
    x, w = (torch.randn(*shape, dtype=torch.cfloat) for shape in ((3, 4), (4, 5)))
    assert counted(lambda: x @ w).total == 2 * 3 * 4 * 5
    signal, filters = (torch.randn(*shape, dtype=torch.cfloat) for shape in ((1, 2, 10), (3, 2, 3)))
    assert counted(lambda: F.conv1d(signal, filters)).total == 6 * (3 * 8 * 2 * 3)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_refusal_inside_torchscript_arrives_as_one() -> None:
    """TorchScript makes an error of its own of each, and hides the sentence in a traceback."""
    from torch.utils.mkldnn import to_mkldnn

    layer, x = to_mkldnn(nn.Conv2d(4, 6, 3).eval()), torch.randn(1, 4, 8, 8).to_mkldnn()
    words = "FLOPs of op 'aten::mkldnn_convolution' are not known; register them with"
    with pytest.raises(UserError, match=words), FlopCounter():
        layer(x)
