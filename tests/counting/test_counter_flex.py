"""Flex attention by its block mask: pairs its rule allows, blocks its kernel computes; by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from modbench import FlopCounter

# 300 tokens are blocks of 128, 128 and 44.
LENGTH, SEQUENCES, HEADS, WIDTH = 300, 2, 4, 16
EACH = HEADS * 4 * WIDTH
TRIANGLE = 300 * 301 // 2
CAUSAL_BLOCKS = 128 * 128 + 128 * 256 + 44 * 300
DOCUMENTS = torch.arange(LENGTH) // 100

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),  # torch.compile's own
]


def causal(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def within_documents(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & (DOCUMENTS[query] == DOCUMENTS[key])


def shifted(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query >= key) & (key >= sequence * 10)


def counted(run: Callable[[], object]) -> FlopCounter:
    with FlopCounter() as counter:
        run()
    return counter


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("rule", "sequences", "pairs", "blocks"),
    [
        (causal, None, 2 * TRIANGLE, 2 * CAUSAL_BLOCKS),
        # Rows 0-127 see block 0, 128-255 blocks 0 and 1, 256-299 block 1 and the last.
        (within_documents, None, 2 * 3 * 5050, 2 * (128 * 128 + 128 * 256 + 44 * 172)),
        # In the second sequence no query sees the first ten keys, which 300 to 291 would have.
        (shifted, SEQUENCES, 2 * TRIANGLE - (3000 - 45), 2 * CAUSAL_BLOCKS),
    ],
    ids=["causal", "documents", "by-sequence"],
)
def test_flex_attention_counts_by_its_mask(
    compiled: bool, rule: Any, sequences: int | None, pairs: int, blocks: int
) -> None:
    x = torch.randn(SEQUENCES, HEADS, LENGTH, WIDTH)
    mask = create_block_mask(rule, sequences, None, LENGTH, LENGTH, device="cpu")
    attend = torch.compile(flex_attention) if compiled else flex_attention
    counter = counted(lambda: attend(x, x, x, block_mask=mask))
    assert counter.total_model == EACH * pairs
    assert counter.total == EACH * SEQUENCES * LENGTH**2
    assert counter.executed == EACH * blocks
    assert set(counter.by_op) == {"higher_order::flex_attention"}


def test_the_backward_pass_needs_twice_and_computes_two_and_a_half() -> None:
    """By the op itself: the function refuses a backward pass on a CPU."""
    x = torch.randn(SEQUENCES, HEADS, LENGTH, WIDTH, requires_grad=True)
    mask = create_block_mask(causal, None, None, LENGTH, LENGTH, device="cpu")

    def score(score: Tensor, *place: Tensor) -> Tensor:
        return score

    def run() -> None:
        op = torch.ops.higher_order.flex_attention
        op(x, x, x, score, mask.as_tuple(), 0.25, {})[0].sum().backward()

    counter = counted(run)
    assert counter.total_model == 3 * EACH * 2 * TRIANGLE
    assert counter.total == 3 * EACH * 2 * LENGTH**2
    assert 2 * counter.executed == 7 * EACH * 2 * CAUSAL_BLOCKS
