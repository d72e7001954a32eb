"""The selection: exactly k tokens, in order, ties to the earlier token; and what causal rules learn.

B sequences, T tokens, D width.
"""

import pytest
import torch

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.registry import build_router
from modbench.routing.topk import capacity_tokens, highest, pack_tokens

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)


def depth_layer(**options: object) -> DepthRouted:
    layer = build_model(SHAPE, build_router("mod", options), seed=2).layers[1]
    torch.nn.init.normal_(layer.router.weight, std=0.5)
    return layer


@pytest.mark.parametrize("tokens", [1, 7, 100, 1000])
@pytest.mark.parametrize("capacity", [0.07, 0.125, 1.0])
def test_share_is_the_written_decimal_rounded_up(capacity: float, tokens: int) -> None:
    hundredths = round(capacity * 1000)
    assert capacity_tokens(capacity, tokens) == max(1, -(-hundredths * tokens // 1000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["all different", "many alike", "one pair", "no numbers", "infinite"])
@pytest.mark.parametrize("count", [1, 39])
def test_the_highest_are_those_of_a_stable_sort(count: int, kind: str, dtype: torch.dtype) -> None:
    """For both paths, `torch.topk` and the sort."""
    generator = torch.Generator().manual_seed(count)
    scores_BT = torch.rand(3, 40, generator=generator).argsort(dim=1).to(dtype)
    if kind == "many alike":
        scores_BT = (scores_BT / 8).floor()
    elif kind == "one pair":  # just where the row is cut
        scores_BT[1, scores_BT[1] == 40 - count] = 39 - count
    elif kind == "no numbers":
        scores_BT[1, 3:7] = torch.nan
    elif kind == "infinite":
        scores_BT[0, 5:] = -torch.inf
        scores_BT[2, 30:] = torch.inf
    order_BT = scores_BT.argsort(dim=1, descending=True, stable=True)
    truth_BT = torch.zeros(3, 40, dtype=torch.bool).scatter_(1, order_BT[:, :count], 1)
    assert torch.equal(highest(scores_BT, [count] * 3, None), truth_BT)


def test_equal_counts_are_packed_without_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """To sort takes several times as long."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("sorted")

    monkeypatch.setattr(torch.Tensor, "argsort", refuse)
    selected_BT = torch.tensor([[True, False, True, False], [False, False, True, True]])
    assert pack_tokens(selected_BT, 2, full=True).tolist() == [[0, 2], [2, 3]]
    with pytest.raises(AssertionError, match="sorted"):
        pack_tokens(selected_BT, 2)


def test_padding_is_never_selected() -> None:
    scores_BT = torch.tensor([[1.0, 2.0, 9.0, 9.0], [0.0, 1.0, 2.0, 3.0]])
    real_BT = torch.tensor([[True, True, False, False], [True, True, True, True]])
    selected_BT = highest(scores_BT, [1, 3], real_BT)
    assert selected_BT.tolist() == [[False, True, False, False], [False, True, True, True]]


def test_packing_keeps_the_order() -> None:
    selected_BT = torch.tensor([[False, True, False, True], [True, False, False, False]])
    assert pack_tokens(selected_BT, 2).tolist() == [[1, 3], [0, 1]]
    full_BT = torch.tensor([[False, True, False, True], [True, False, False, True]])
    assert (
        pack_tokens(full_BT, 2, full=True).tolist()
        == pack_tokens(full_BT, 2).tolist()
        == [[1, 3], [0, 3]]
    )


@pytest.mark.parametrize("rule", ["predictor", "aux_bce", "ema_threshold"])
def test_a_causal_rule_learns_membership_in_the_top_k(rule: str) -> None:
    """On scores that a token shows by itself, each rule must come to agree with top-k."""
    weight = {} if rule == "ema_threshold" else {"auxiliary": 1.0}
    layer = depth_layer(causal=rule, capacity=0.25, **weight).train()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)

    def stream(sequences: int) -> torch.Tensor:
        x_BTD = torch.randn(sequences, 64, SHAPE.width)
        x_BTD[..., 0] = 1.0  # a router without bias needs something constant to put its threshold on
        return x_BTD

    for _ in range(150):
        context = Context()
        layer(stream(4), context)
        loss = context.trace.auxiliary_loss()
        if isinstance(loss, torch.Tensor):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    x_BTD = stream(8)
    top, causal = Context(), Context(selection="causal")
    layer.eval()(x_BTD, top)
    layer(x_BTD, causal)
    wanted, got = top.trace.tensors[1, "selected"], causal.trace.tensors[1, "selected"]
    both = (wanted & got).sum() / ((wanted.sum() + got.sum()) / 2)
    assert both > 0.8  # F1; a rule that always or never selects reaches 0.4


def test_a_token_exactly_at_the_threshold_is_in() -> None:
    part = build_model(SHAPE, build_router("expert_choice")).layers[0].feed_forward
    torch.nn.init.zeros_(part.router.weight)  # every score is 1/8, and so is the threshold
    context = Context(selection="causal")
    part(torch.randn(1, 5, SHAPE.width), context)
    assert context.trace.counts[0, "experts"] == (5 * 8,)
    layer = depth_layer(causal="ema_threshold")
    torch.nn.init.zeros_(layer.router.weight)
    context = Context(selection="causal")
    layer(torch.randn(1, 5, SHAPE.width), context)
    assert context.trace.counts[1, "depth"] == (5,)
