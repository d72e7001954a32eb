"""Attention in all its guises: what it needs, its square, and what runs; each by hand.

2 sequences, 4 heads, width 8 in most: a pair costs 2 * 2 * 4 * (8 + 8) = 256 / 2 per sequence and head.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as imported_by_name
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from modbench import FlopCounter
from modbench.counting.attention import causal_pairs
from modbench.errors import UserError
from modbench.ledger import Flops, component
from modbench.ledger.cpu_attention import executed_pairs

SEQUENCES, HEADS, WIDTH = 2, 4, 8
EACH = 4 * WIDTH  #: FLOPs of one query-key pair of one head, forward


def counted(run: Callable[[], object]) -> FlopCounter:
    with FlopCounter() as counter:
        run()
    return counter


def given(
    queries: int = 7, keys: int = 7, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [
        torch.randn(SEQUENCES, HEADS, length, WIDTH, device=device, dtype=dtype, requires_grad=True)
        for length in (queries, keys, keys)
    ]


def test_causal_pairs_by_counting_them() -> None:
    for queries in range(8):
        for keys in range(8):
            for ahead in range(-8, 8):
                seen = sum(j <= i + ahead for i in range(queries) for j in range(keys))
                assert causal_pairs(queries, keys, ahead) == seen


@pytest.mark.parametrize(
    ("queries", "keys", "pairs"),
    [
        (7, 7, 49),
        (512, 512, 512 * 512),
        (1100, 1100, 512 * 512 + 512 * 1024 + 76 * 1100),
        (600, 100, 600 * 100),
        (100, 600, 100 * 512),
        (0, 5, 0),
    ],
)
def test_a_cpu_computes_whole_blocks_of_keys(queries: int, keys: int, pairs: int) -> None:
    assert executed_pairs(queries, keys) == pairs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_causal_attention_in_three_conventions(device: str, dtype: torch.dtype) -> None:
    length = 600
    q, k, v = given(length, length, device, dtype)
    with FlopCounter() as counter:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        forward = counter.total_model, counter.total, counter.executed
        out.sum().backward()
    each, blocks = SEQUENCES * HEADS * EACH, 512 * 512 + 88 * 600
    assert forward == (each * 600 * 601 // 2, each * 600 * 600, each * blocks)
    assert counter.total_model == 3 * forward[0]
    assert counter.total == 3 * forward[1]
    assert 2 * counter.executed == 7 * forward[2]  # the scores once more in the backward pass


def masks(form: str, allowed: Tensor) -> Tensor:
    if form == "bool":
        return allowed
    lowest = {"-inf": -torch.inf, "lowest": torch.finfo(torch.float32).min}[form]
    return torch.randn(allowed.shape).masked_fill(~allowed, lowest)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=lambda b: b.name)
@pytest.mark.parametrize("form", ["bool", "-inf", "lowest"])
@pytest.mark.parametrize("shape", [(7, 7), (2, 1, 7, 7), (1, 1, 1, 7)], ids=str)
def test_a_mask_counts_by_the_pairs_it_allows(
    shape: tuple[int, ...], form: str, backend: SDPBackend
) -> None:
    allowed = torch.rand(shape) > 0.4
    pairs = int(allowed.expand(SEQUENCES, HEADS, 7, 7).sum())
    q, k, v = given()
    mask = masks(form, allowed)
    with sdpa_kernel(backend):
        counter = counted(lambda: F.scaled_dot_product_attention(q, k, v, mask).sum().backward())
    assert 0 < pairs < SEQUENCES * HEADS * 49
    assert counter.total_model == 3 * EACH * pairs
    assert counter.total == 3 * EACH * SEQUENCES * HEADS * 49
    factor = 7 if backend is SDPBackend.FLASH_ATTENTION else 6
    assert counter.executed == factor * EACH * SEQUENCES * HEADS * 49 // 2


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=lambda b: b.name)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_causal_biases_are_known_by_name(device: str, backend: SDPBackend) -> None:
    q, k, v = given(5, 7, device)
    with sdpa_kernel(backend):
        for bias, pairs in ((causal_lower_right(5, 7), 25), (causal_upper_left(5, 7), 15)):
            counter = counted(lambda b=bias: F.scaled_dot_product_attention(q, k, v, b).sum().backward())
            assert counter.total_model == 3 * EACH * SEQUENCES * HEADS * pairs
            assert counter.total == 3 * EACH * SEQUENCES * HEADS * 35


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("value_width", [8, 12])
def test_meta_counts_what_a_cpu_counts(
    device: str, causal: bool, dropout: float, value_width: int
) -> None:
    """Where a CPU falls back to matmuls, the square runs, and twice of it backward."""
    length = 600
    q, k = (torch.randn(1, 4, length, 8, device=device, requires_grad=True) for _ in "qk")
    v = torch.randn(1, 4, length, value_width, device=device, requires_grad=True)
    counter = counted(
        lambda: (
            F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal).sum().backward()
        )
    )
    each, square = 2 * 4 * (8 + value_width), length * length
    needed = length * (length + 1) // 2 if causal else square
    assert counter.total_model == 3 * each * needed
    assert counter.total == 3 * each * square
    if dropout or value_width != 8:
        assert counter.executed == 3 * each * square
    else:
        blocks = 512 * 512 + 88 * 600 if causal else square
        assert counter.executed == 7 * each * blocks // 2


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_attention_under_vmap_brings_a_mask_for_each() -> None:
    x, allowed = torch.randn(3, SEQUENCES, HEADS, 7, WIDTH), torch.ones(3, 7, 7, dtype=torch.bool)
    allowed[0, 1:3, :5] = False  # 137 pairs: no third of them is a whole number

    def attend(x: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend):
            counter = counted(lambda: torch.func.vmap(attend)(x, allowed))
        assert counter.total_model == EACH * SEQUENCES * HEADS * int(allowed.sum())
        assert counter.total == EACH * SEQUENCES * HEADS * 3 * 49


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_inside_multihead_attention(device: str) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True, device=device)
    x = torch.randn(3, 7, 16, device=device)
    mask = torch.zeros(7, 7, dtype=torch.bool, device=device)
    counter = counted(lambda: layer(x, x, x, attn_mask=mask, is_causal=True, need_weights=False))
    projections, scores = 2 * 21 * 16 * 64, 4 * 3 * 16
    assert counter.total == projections + scores * 49
    assert counter.total_model == projections + scores * 28


def test_a_padding_mask_in_multihead_attention() -> None:
    layer, x = nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(3, 7, 16)
    hidden = torch.arange(7) >= torch.tensor([[7], [4], [2]])
    projections, scores = 2 * 21 * 16 * 64, 4 * 16 * 7
    for training in (True, False):  # written out, or as one fused op
        layer.train(training)
        with torch.no_grad():
            counter = counted(lambda: layer(x, x, x, key_padding_mask=hidden, need_weights=False))
        assert counter.total == projections + scores * 21
        assert counter.total_model == projections + scores * (7 + 4 + 2)
    weights = layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias
    with torch.no_grad():
        fused = counted(
            lambda: torch._native_multi_head_attention(x, x, x, 16, 4, *weights, hidden, mask_type=1)
        )
    assert fused.total_model == projections + scores * (7 + 4 + 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_attention_is_causal_still(device: str, reentrant: bool) -> None:
    length = 600
    q, k, v = given(length, length, device)
    for value_width in (WIDTH, WIDTH + 1):  # the second goes by matmuls
        v = torch.randn(SEQUENCES, HEADS, length, value_width, device=device, requires_grad=True)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with component("attention.scores", 3):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True) * 1

        counter = counted(
            lambda f=attend, v=v: checkpoint(f, q, k, v, use_reentrant=reentrant).sum().backward()
        )
        each = SEQUENCES * HEADS * 2 * (WIDTH + value_width)
        fused = value_width == WIDTH
        pairs = executed_pairs(length, length) if fused else length * length
        ledger = counter.ledger.entries
        forward = Flops(each * length * (length + 1) // 2, each * length * length, each * pairs)
        assert ledger[3, "attention.scores", "forward"] == forward
        again = ledger[3, "attention.scores", "recompute"]
        assert (again.model, again.full) == (0, 0)
        # The last of the two matmuls isn't needed for the backward pass, and not run by the one kind.
        last = 0 if fused or reentrant else each // (WIDTH + value_width) * value_width * pairs
        assert again.executed == each * pairs - last
        backward = ledger[3, "attention.scores", "backward"]
        assert (backward.model, backward.full) == (2 * forward.model, 2 * forward.full)
        assert backward.executed == each * pairs * (5 if fused else 4) // 2
        assert counter.executed == sum(flops.executed for flops in ledger.values())


def test_attention_called_by_a_name_from_before_is_seen_or_refused() -> None:
    q, k, v = given()
    counter = counted(lambda: imported_by_name(q, k, v, is_causal=True))
    assert counter.total_model == EACH * SEQUENCES * HEADS * 28  # the fused op says that it is causal
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(UserError, match="call it through the module"):
        counted(lambda: imported_by_name(q, k, v, is_causal=True))


def test_attention_is_itself_again_afterwards() -> None:
    before = F.scaled_dot_product_attention
    with FlopCounter(), FlopCounter():
        assert F.scaled_dot_product_attention is not before
    with pytest.raises(ZeroDivisionError), FlopCounter():
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is before is torch._C._nn.scaled_dot_product_attention
    assert imported_by_name is before


def test_function_modes_see_the_function_they_know() -> None:
    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            functions.append(func)
            return func(*args, **(kwargs or {}))

    functions: list[Any] = []
    q, k, v = given()
    with FlopCounter() as counter, Seen():
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert imported_by_name in functions
    assert counter.total_model == EACH * SEQUENCES * HEADS * 28


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=lambda b: b.name)
@pytest.mark.parametrize("masked", [True, False])
def test_a_backward_pass_whose_forward_pass_was_not_counted(backend: SDPBackend, masked: bool) -> None:
    q, k, v = given()
    with sdpa_kernel(backend):
        loss = F.scaled_dot_product_attention(q, k, v, is_causal=masked).sum()
    counter = counted(loss.backward)
    assert counter.total == 2 * EACH * SEQUENCES * HEADS * 49
    if masked and backend is SDPBackend.MATH:  # its matmuls do not show which pairs are needed
        for ask in (lambda: counter.total_model, lambda: counter.ledger, lambda: counter.under("model")):
            with pytest.raises(UserError, match="run the forward pass inside"):
                ask()
        assert counter.under("full") == sum(counter.by_op.values()) == counter.total
    else:
        assert counter.total_model == 2 * EACH * SEQUENCES * HEADS * (28 if masked else 49)


def test_a_mask_with_values_is_read_on_the_meta_device() -> None:
    q, k, v = given(device="meta")
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    for value in (v, torch.randn(SEQUENCES, HEADS, 7, WIDTH + 1, device="meta")):  # fused, and matmuls
        counter = counted(lambda value=value: F.scaled_dot_product_attention(q, k, value, mask))
        assert counter.total_model * 49 == counter.total * 28
        assert counter.unread_masks == 0
    assert counted(lambda: F.scaled_dot_product_attention(q, k, v, mask.to("meta"))).unread_masks == 1


def test_what_is_counted_computes_what_it_computes_otherwise() -> None:
    q, k, v = given(5, 7)
    for mask in (causal_lower_right(5, 7), causal_upper_left(5, 7), torch.rand(5, 7) > 0.4):
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        with FlopCounter():
            assert torch.equal(F.scaled_dot_product_attention(q, k, v, mask), expected)
