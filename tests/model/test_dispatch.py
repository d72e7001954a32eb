"""Tokens to experts and back by gathering, against loops over assignments.

N tokens, K experts of a token, A rows, D model width.
"""

import pytest
import torch
from torch import Tensor

from modbench.model.dispatch import Assignments, combine, dispatch

TOKENS, WIDTH = 63, 8


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("each", [1, 2, 5])
@pytest.mark.parametrize("kept", [1.0, 0.6, 0.0], ids=["all", "some dropped", "none"])
def test_there_and_back_is_the_loops(kept: float, each: int) -> None:
    assignments = TOKENS * each
    order_A = torch.randperm(assignments, generator=torch.Generator().manual_seed(0))
    order_A = order_A[: int(kept * assignments)]
    given = Assignments.of(order_A, assignments, each)
    x_ND, gates_NK = drawn(TOKENS, WIDTH, seed=1), drawn(TOKENS, each, seed=2)
    weights_AD, dy_ND = (
        drawn(len(order_A), WIDTH, seed=3).detach(),
        drawn(TOKENS, WIDTH, seed=4).detach(),
    )

    y_ND = combine(dispatch(x_ND, given, torch.float64) * weights_AD, gates_NK, given)
    found = [y_ND, *torch.autograd.grad(y_ND, (x_ND, gates_NK), dy_ND)]

    rows = [torch.zeros(WIDTH, dtype=torch.float64) + 0 * x_ND[n] for n in range(TOKENS)]
    for place, assignment in enumerate(order_A.tolist()):
        n, k = divmod(assignment, each)
        rows[n] = rows[n] + gates_NK[n, k] * x_ND[n] * weights_AD[place]
    truth_ND = torch.stack(rows) + 0 * gates_NK.sum()
    truth = [truth_ND, *torch.autograd.grad(truth_ND, (x_ND, gates_NK), dy_ND)]
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_gradients_of_half_precision_rows_are_summed_in_single() -> None:
    """1024 + 1 + 1 in bfloat16 alone would stay 1024."""
    given = Assignments.of(torch.arange(3), 3, 3)
    x_ND = torch.ones(1, 1).requires_grad_()
    rows_AD = dispatch(x_ND, given, torch.bfloat16)
    assert rows_AD.dtype == torch.bfloat16
    rows_AD.backward(torch.tensor([[1024.0], [1.0], [1.0]], dtype=torch.bfloat16))
    assert x_ND.grad is not None
    assert x_ND.grad.item() == 1026
