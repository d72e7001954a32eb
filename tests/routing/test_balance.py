"""The balance loss on loads that are known, and which experts scores and groups choose.

N tokens, E experts, K chosen.
"""

import pytest
import torch
import torch.nn.functional as F

from modbench.routing.balance import COMPARED, SelectionBias, balance_loss, load_of
from modbench.routing.topk import best_experts


@pytest.mark.parametrize("experts", [1, 8, 64, COMPARED, COMPARED + 1])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_loads_are_counted_the_same_on_every_device(
    on_gpu: bool, experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU compares with each expert, up to as many as memory allows."""
    by_index: list[int] = []
    right = torch.Tensor.index_add

    def index_add(self: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        by_index.append(len(self))
        return right(self, *given)

    experts_NK = torch.randint(experts, (63, 4))
    truth_E = experts_NK.flatten().bincount(minlength=experts)
    monkeypatch.setattr(torch.Tensor, "index_add", index_add)
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    load_E = load_of(experts_NK, experts)
    assert load_E.dtype == torch.int64
    assert load_E.tolist() == truth_E.tolist()
    assert by_index == ([] if on_gpu and experts <= COMPARED else [experts])


@pytest.mark.parametrize("scope", ["batch", "sequence"])
@pytest.mark.parametrize("k", [1, 2, 8])
def test_the_balance_loss_is_1_at_an_even_load(k: int, scope: str) -> None:
    experts_NK = (torch.arange(48)[:, None] * k + torch.arange(k)) % 8
    even_NE = torch.full((48, 8), 1 / 8)
    sequence_N = torch.arange(48) // 24 if scope == "sequence" else None
    assert balance_loss(experts_NK, even_NE, sequence_N, 3).item() == pytest.approx(1)
    # All on the first k experts, and sure of it: E / k.
    likely_NE = torch.zeros(48, 8).index_fill(1, torch.arange(k), 1 / k)
    crowded = balance_loss(torch.arange(k).expand(48, k), likely_NE, sequence_N, 3)
    assert crowded.item() == pytest.approx(8 / k)


def test_a_sequence_balances_by_itself() -> None:
    """Each of two sequences on an expert of its own: even as a batch, as uneven as can be by itself."""
    experts_NK = torch.tensor([[0], [0], [1], [1]])
    shares_NE = F.one_hot(experts_NK[:, 0], 2).float()
    assert balance_loss(experts_NK, shares_NE).item() == 1
    assert balance_loss(experts_NK, shares_NE, torch.tensor([0, 0, 1, 1]), 2).item() == 2


def test_experts_are_chosen_out_of_few_groups_by_their_best_members() -> None:
    scores_NE = torch.tensor([[9.0, 0.0, 0.0, 5.0, 5.0, 0.0, 4.0, 4.0, 4.0]])
    assert best_experts(scores_NE, 2).tolist() == [[0, 3]]
    # One expert of each of two groups: their best ones decide; two of one group: their best two.
    assert best_experts(scores_NE, 2, groups=3, top_groups=2).tolist() == [[0, 3]]
    assert best_experts(scores_NE, 2, groups=3, top_groups=1).tolist() == [[3, 4]]
    assert best_experts(scores_NE, 3, groups=3, top_groups=1).tolist() == [[6, 7, 8]]
    tied_NE = torch.zeros(1, 6)
    assert best_experts(tied_NE, 2, groups=3, top_groups=2).tolist() == [[0, 1]]


def test_the_bias_moves_by_its_step_whatever_the_distance_from_the_mean() -> None:
    bias = SelectionBias(4, 0.25)
    bias.update(torch.tensor([4.5, 5.0, 5.5, 5.0]))
    assert bias.value.tolist() == [0.25, 0.0, -0.25, 0.0]  # the mean is 5; half a token away is away
    bias.update(torch.tensor([0.0, 0.0, 0.0, 40.0]))
    assert bias.value.tolist() == [0.5, 0.25, 0.0, -0.25]
