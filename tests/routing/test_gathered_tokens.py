"""Gathering selected tokens and adding their updates back, and what a model spends on padded slots.

B sequences, T tokens, D model width.
"""

import pytest
import torch

from modbench.counting.counter import FlopCounter
from modbench.ledger import Workload
from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.kv_cache import Cache
from modbench.routing.build import build_model
from modbench.routing.gathered_tokens import GatheredTokens, group_equal_sizes
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=4, heads=4, kv_heads=2, mlp_width=64)
LENGTHS = [300, 1, 170, 63]


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(
    "selected",
    [
        [[0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0]],  # equal counts
        [[0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]],  # one sequence without a selected token
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]],
    ],
    ids=["equal", "unequal", "one"],
)
def test_selected_tokens_are_updated_and_the_others_stay(
    selected: list[list[int]], learns: bool
) -> None:
    x_BTD = torch.randn(3, 4, 8, requires_grad=learns)
    selected_BT = torch.tensor(selected, dtype=torch.bool)
    counts = selected_BT.sum(1).tolist()
    gathered = GatheredTokens(x_BTD, selected_BT, counts, Context(), layer=0)
    rows = [b for b in range(3) if counts[b]]
    for row, b in enumerate(rows):
        assert torch.equal(gathered.x_RKD[row, : counts[b]], x_BTD[b, selected_BT[b]])
        places = selected_BT[b].nonzero().flatten()
        assert torch.equal(gathered.context.positions_BT[row, : counts[b]], places)
    out_BTD = gathered.add_to(x_BTD, 2 * gathered.x_RKD)
    assert torch.equal(out_BTD, torch.where(selected_BT[..., None], 3 * x_BTD, x_BTD))
    if learns:
        (gradient_BTD,) = torch.autograd.grad(out_BTD.sum(), x_BTD)
        assert torch.equal(gradient_BTD[..., 0], 1 + 2 * selected_BT.float())


def test_padding_is_never_gathered() -> None:
    context = Context(lengths_B=torch.tensor([2, 3]))
    x_BTD = torch.arange(2 * 3 * 1.0).view(2, 3, 1)
    gathered = GatheredTokens(x_BTD, torch.ones(2, 3, dtype=torch.bool), [2, 3], context, layer=0)
    assert gathered.context.lengths_B.tolist() == [2, 3]
    assert gathered.add_to(x_BTD, 1 + 0 * gathered.x_RKD).flatten().tolist() == [1, 2, 2, 4, 5, 6]


def test_groups_of_equal_counts_need_no_padding() -> None:
    assert group_equal_sizes([2, 0, 3, 2]) == [[2, 0, 0, 2], [0, 0, 3, 0]]


@torch.no_grad()
@pytest.mark.parametrize(("selection", "cached"), [("causal", False), ("causal", True), ("topk", False)])
def test_the_dispatched_flops_of_padded_slots_are_those_that_run(selection: str, cached: bool) -> None:
    router = build_router("mod", {"capacity": 0.5, "causal": "ema_threshold"})
    model = build_model(SHAPE, router, seed=3).train()
    for _ in range(4):
        model(torch.randint(97, (4, 64)), Context())
    tokens_BT = torch.randint(97, (len(LENGTHS), max(LENGTHS)))
    cache = Cache(len(LENGTHS)) if cached else None
    context = Context(selection=selection, lengths_B=torch.tensor(LENGTHS), cache=cache)
    with FlopCounter() as counter:
        model.eval()(tokens_BT, context)
    counts = context.trace.counts
    assert len(set(counts[1, "depth"])) > 1
    workload = Workload(lengths=tuple(LENGTHS), phase="forward", counts=counts, padding=True)
    for convention in ("model", "full", "executed"):
        assert counter.under(convention) == model.ledger(workload).total(convention)
