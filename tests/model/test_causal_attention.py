"""Causal attention out of matmuls against PyTorch's, its plain twin.

B sequences, T tokens, H heads, K key/value heads, P width of a head.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload, attention
from modbench.model import causal_attention as rooms
from modbench.model import processor
from modbench.model.causal_attention import causal_attention, newest_attention, whole_keys

SHAPES = [(3, 4, 4, 63, 16), (1, 2, 2, 128, 8), (2, 6, 2, 129, 32), (2, 4, 1, 1000, 8), (1, 1, 1, 1, 4)]


def made(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of what comes out; q lies in memory as the block's does."""
    B, H, K, T, P = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(B, T, H, P, generator=generator).transpose(1, 2)
    k, v, dy = (torch.randn(B, n, T, P, generator=generator) for n in (K, K, H))
    return [q.to(dtype).requires_grad_(), k.to(dtype).requires_grad_(), v.to(dtype).requires_grad_(), dy]


def twin(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def with_gradients(run, q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
    y = run(q, k, v)
    return [y, *torch.autograd.grad(y, (q, k, v), dy.to(y.dtype))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)],
    ids=["fp64", "fp32", "bf16"],
)
def test_outputs_and_gradients_are_the_twins(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    given = made(shape, dtype)
    wide = [t.detach().double().requires_grad_() for t in given]
    for ours, truth in zip(
        with_gradients(causal_attention, *given), with_gradients(twin, *wide), strict=True
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), truth, atol=tolerance, rtol=tolerance)


def test_some_sequences_at_a_time_are_all_of_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = made((5, 2, 2, 150, 8), torch.float64)
    at_once = with_gradients(causal_attention, *given)
    monkeypatch.setattr(rooms, "SCORES", 2 * 2 * 128 * 150)
    for part, whole in zip(with_gradients(causal_attention, *given), at_once, strict=True):
        torch.testing.assert_close(part, whole, atol=1e-13, rtol=0)


def test_a_later_token_changes_nothing_before_it() -> None:
    q, k, v, _ = made((1, 2, 2, 140, 8), torch.float32)
    before = causal_attention(q, k, v)
    with torch.no_grad():
        for t in (q, k, v):
            t[:, :, 131] += 5
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, :131], after[:, :, :131])
    assert not torch.equal(before[:, :, 131:], after[:, :, 131:])


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
@pytest.mark.parametrize("key_heads", [1, 2])
def test_a_later_key_that_is_not_finite_changes_nothing_before_it(key_heads: int, broken: float) -> None:
    q, k, v, _ = made((1, 2, key_heads, 140, 8), torch.float32)
    before = causal_attention(q, k, v)
    with torch.no_grad():
        k[:, :, 135] = broken
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, :135], after[:, :, :135])
    assert after[:, :, 135:].isnan().all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("tokens", [63, 128, 300])
def test_it_counts_as_the_ledger_says(tokens: int, device: str) -> None:
    given = [t.detach().to(device).requires_grad_() for t in made((2, 4, 2, tokens, 8), torch.float32)]
    with FlopCounter() as counter:
        with_gradients(causal_attention, *given)
    workload = Workload.uniform(2, tokens, "train")
    ledger = attention(workload, 0, heads=4, head_width=8, block=rooms.OWN_BLOCK)
    for convention in ("model", "full", "executed"):
        assert counter.under(convention) == ledger.total(convention)
        for direction in ("forward", "backward"):
            found = counter.ledger.total(convention, direction)
            assert found == ledger.total(convention, direction)
    assert counter.executed != counter.total


#: B, H, K, C, P; how many keys the newest token of each sequence sees.
NEWEST = [
    ((1, 4, 4, 1, 16), [1]),
    ((2, 4, 4, 70, 16), [70, 70]),
    ((3, 8, 2, 500, 8), [500, 1, 333]),
    ((4, 4, 1, 300, 8), [290, 290, 290, 290]),
]


def newest(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """q as the block has it, and k and v as a cache does, with room behind them."""
    B, H, K, C, P = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(B, 1, H + K, P, generator=generator).transpose(1, 2)[:, :H]
    k, v = (torch.randn(B, K, 2 * C, P, generator=generator)[:, :, :C] for _ in range(2))
    return [q.to(dtype), k.to(dtype), v.to(dtype)]


@pytest.mark.parametrize(("shape", "seen"), NEWEST, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)],
    ids=["fp64", "fp32", "bf16"],
)
@pytest.mark.parametrize("by_matmuls", [True, False, None])
def test_the_newest_token_sees_what_it_may(
    shape: tuple[int, ...],
    seen: list[int],
    dtype: torch.dtype,
    tolerance: float,
    by_matmuls: bool | None,
) -> None:
    q, k, v = newest(shape, dtype)
    y = newest_attention(q, k, v, seen, by_matmuls=by_matmuls)
    assert (y.shape, y.dtype) == (q.shape, dtype)
    for b, keys in enumerate(seen):
        grouped = q.shape[1] // k.shape[1]
        k_HCP, v_HCP = (t[b, :, :keys].double().repeat_interleave(grouped, 0) for t in (k, v))
        p_H1C = (q[b].double() @ k_HCP.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
        torch.testing.assert_close(y[b].double(), p_H1C @ v_HCP, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("by_matmuls", [True, False])
@pytest.mark.parametrize(("shape", "seen"), NEWEST, ids=str)
def test_the_newest_token_counts_as_the_ledger_says(
    shape: tuple[int, ...], seen: list[int], by_matmuls: bool, device: str
) -> None:
    given = [t.to(device) for t in newest(shape, torch.float32)]
    with FlopCounter() as counter:
        newest_attention(*given, seen, by_matmuls=by_matmuls)
    _, heads, _, keys, width = shape
    each = 4 * heads * width
    assert counter.under("model") == each * sum(seen)
    assert counter.under("full") == counter.under("executed") == each * len(seen) * keys


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_keys_of_the_newest_token_go_by_matmuls_where_these_are_faster_and_else_by_one_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, many = "aten::_scaled_dot_product_flash_attention_for_cpu", rooms.MANY[dtype] // (2 * 2 * 8)
    for keys, slow, op in (
        (many, True, "aten::bmm"),
        (many - 1, True, kernel),
        (many, False, kernel),
    ):
        monkeypatch.setattr(processor, "SLOW_FEW", slow)
        given = newest((2, 2, 2, keys, 8), dtype)
        with FlopCounter() as counter:
            newest_attention(*given, [keys] * 2)
        assert set(counter.by_op) == {op}


def test_keys_in_bfloat16_are_rounded_up_where_matmuls_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "SLOW_FEW", True)
    k, many = newest((2, 4, 4, 1, 8), torch.bfloat16)[1], max(rooms.MANY.values())
    assert whole_keys(k, 4, many) == rooms.KEYS
    assert whole_keys(k, 4, 16) == 1  # PyTorch's kernel takes any number
    assert whole_keys(k.float(), 4, many) == 1
    with FlopCounter():
        assert whole_keys(k, 4, many) == 1
    monkeypatch.setattr(processor, "SLOW_FEW", False)
    assert whole_keys(k, 4, many) == 1
