"""Tokens to experts and back, against loops over assignments.

N tokens, A rows, D model width.
"""

import pytest
import torch
from torch import Tensor

from modbench.routing import dispatch as dispatching
from modbench.routing.dispatch import from_experts

TOKENS, WIDTH = 63, 8


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("rows", [0, 300])
def test_any_number_of_experts_of_a_token_is_the_loop(rows: int) -> None:
    tokens_A = torch.randint(TOKENS, (rows,), generator=torch.Generator().manual_seed(0))
    x_ND, gates_A = drawn(TOKENS, WIDTH, seed=1), drawn(rows, seed=2)
    weights_AD, dy_ND = (drawn(n, WIDTH, seed=3).detach() for n in (rows, TOKENS))

    given_AD = x_ND.index_select(0, tokens_A) * weights_AD
    before_AD = given_AD.detach().clone()
    y_ND = from_experts(given_AD, gates_A, tokens_A, TOKENS)
    found = [y_ND, *torch.autograd.grad(y_ND, (x_ND, gates_A), dy_ND)]
    assert torch.equal(given_AD, before_AD)
    with torch.no_grad():
        given_AD = x_ND.index_select(0, tokens_A) * weights_AD
        assert torch.equal(from_experts(given_AD, gates_A, tokens_A, TOKENS), y_ND)

    sums = [0 * x_ND[n] for n in range(TOKENS)]
    for place, n in enumerate(tokens_A.tolist()):
        sums[n] = sums[n] + gates_A[place] * x_ND[n] * weights_AD[place]
    truth_ND = torch.stack(sums) + 0 * gates_A.sum()
    truth = [truth_ND, *torch.autograd.grad(truth_ND, (x_ND, gates_A), dy_ND)]
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.compile's own
@pytest.mark.parametrize("compiled", [False, True], ids=["written", "compiled"])
def test_rows_in_half_precision_are_weighted_and_summed_in_single(compiled: bool) -> None:
    """In bfloat16 1024 + 1 + 1 would stay 1024, and a gate of 1 + 2^-10 would be 1."""
    from_experts = dispatching.from_experts
    if compiled:
        from_experts = torch.compile(from_experts, backend="aot_eager", fullgraph=True)
    fine = 1 + 2**-10
    tokens_A, gates_A = torch.zeros(3, dtype=torch.long), torch.full((3,), fine).requires_grad_()
    rows_AD = torch.tensor([[1024.0], [1.0], [1.0]]).bfloat16().requires_grad_()
    y_ND = from_experts(rows_AD, gates_A, tokens_A, 1)
    assert y_ND.item() == 1026 * fine
    with torch.no_grad():
        assert torch.equal(from_experts(rows_AD, gates_A, tokens_A, 1), y_ND)
    y_ND.backward(torch.tensor([[fine]]))
    assert gates_A.grad is not None
    assert gates_A.grad.tolist() == [1024 * fine, fine, fine]
    assert rows_AD.grad is not None
    assert rows_AD.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_threads_give_the_same_bits_each_time(dtype: torch.dtype) -> None:
    """Many tokens with several rows each, so that threads could meet in a sum."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    tokens_A = torch.randint(500, (20_000,), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(5):
        x_ND, gates_A = drawn(500, 64, seed=1).detach(), drawn(20_000, seed=2).detach()
        x_ND, gates_A = (value.float().requires_grad_() for value in (x_ND, gates_A))
        y_ND = from_experts(x_ND.index_select(0, tokens_A).to(dtype) * 3, gates_A, tokens_A, 500)
        found.append((y_ND, *torch.autograd.grad(y_ND.square().sum(), (x_ND, gates_A))))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
