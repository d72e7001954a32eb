"""`embedding_bag` with weights is a product of a sparse matrix and a dense one; without, it sums."""

import pytest
import torch
import torch.nn.functional as F

from modbench import FlopCounter

#: 9 indices into rows of 7, two of them index 3.
INDICES = torch.tensor([0, 1, 2, 3, 4, 5, 6, 3, 8])
ONCE = 2 * 9 * 7


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("rows", "weights"), [(True, True), (True, False), (False, True)], ids=["both", "rows", "weights"]
)
def test_a_weighted_bag_costs_what_a_sparse_product_does_and_each_gradient_as_much(
    device: str, rows: bool, weights: bool
) -> None:
    table = torch.randn(16, 7, device=device, requires_grad=rows)
    weight = torch.randn(9, device=device, requires_grad=weights)
    offsets = torch.tensor([0, 4]).to(device)
    with FlopCounter() as counter:
        bags = F.embedding_bag(
            INDICES.to(device),
            table,
            offsets,
            mode="sum",
            per_sample_weights=weight,
        )
    assert counter.total == counter.executed == ONCE
    with FlopCounter() as counter:
        bags.sum().backward()
    assert counter.total == ONCE * (rows + weights)


def test_a_gradient_that_is_kept_sparse_costs_the_same() -> None:
    table = torch.randn(16, 7, requires_grad=True)
    weight = torch.randn(3, 3, requires_grad=True)
    with FlopCounter() as counter:
        F.embedding_bag(
            INDICES.view(3, 3), table, mode="sum", per_sample_weights=weight, sparse=True
        ).sum().backward()
    assert counter.total == 3 * ONCE


def test_indices_that_pad_multiply_nothing() -> None:
    table = torch.randn(16, 7, requires_grad=True)
    weight = torch.randn(3, 3, requires_grad=True)
    with FlopCounter() as counter:
        F.embedding_bag(
            INDICES.view(3, 3), table, mode="sum", per_sample_weights=weight, padding_idx=3
        ).sum().backward()
    assert counter.total == 3 * 2 * 7 * 7
