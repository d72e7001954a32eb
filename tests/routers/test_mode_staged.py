"""Staged MoDE over both schemes of experts: against a plain loop, its options, what every scheme shows.

B sequences, T tokens, D width.
"""

import pytest
from against_loop import equals_its_loop, model_of

from modbench.model.config import ModelConfig
from modbench.routers.expert_choice import ExpertChoice
from modbench.routers.token_choice import TokenChoice
from modbench.routing.build import build_model
from modbench.routing.depth_router import DepthRouted
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)
BY = {"token_choice": TokenChoice, "expert_choice": ExpertChoice}


#: What the experts' part does that looks at more than one token.
LOSSES: dict[str, dict] = {
    "drops": {"capacity_factor": 1.0, "z_loss": 0.1},
    "bias": {"bias_step": 0.1, "balance_scope": "sequence"},
    "groups": {"groups": 4, "top_groups": 2, "affinity": "sigmoid", "shared_experts": 1},
    "batch-pool": {"experts_by": "expert_choice", "pool": "batch"},
    "threshold": {"experts_by": "expert_choice", "causal": "ema_threshold"},
}


def layer_of(options: dict, shape: ModelConfig = SHAPE) -> DepthRouted:
    layer = model_of("mode_staged", options, shape).layers[1]
    assert isinstance(layer, DepthRouted)
    return layer


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("residual", ["delta", "full"])
@pytest.mark.parametrize("scores", ["learned", "hash"])
@pytest.mark.parametrize("experts_by", BY)
def test_it_equals_its_plain_loop(experts_by: str, scores: str, residual: str, rule: str) -> None:
    options = {"experts_by": experts_by, "scores": scores, "residual": residual, "capacity": 0.4}
    equals_its_loop(layer_of(options), (63, 17, 1), rule)


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("options", LOSSES.values(), ids=LOSSES)
def test_what_experts_lose_and_drop_is_of_the_tokens_that_entered(options: dict, rule: str) -> None:
    layer = layer_of({"capacity": 0.4, **options})
    told = equals_its_loop(layer, (63, 17, 30), rule)
    if "capacity_factor" in options and rule == "topk":
        assert sum(told.shown[1, "dropped"]) > 0


@pytest.mark.parametrize("experts_by", BY)
def test_every_block_has_experts_of_the_scheme_that_was_asked_for(experts_by: str) -> None:
    model = build_model(SHAPE, build_router("mode_staged", {"experts_by": experts_by, "experts": 4}))
    dense, routed = model.layers
    for part in (dense.feed_forward, routed.block.feed_forward):
        assert type(part.options) is BY[experts_by]
        assert part.bank.experts == 4
        assert part.bank.width == SHAPE.hidden // 2


def test_expert_choice_takes_its_own_options() -> None:
    options = {
        "experts_by": "expert_choice",
        "experts": 5,
        "expert_capacity": 3.0,
        "expert_width": 9,
        "pool": "batch",
        "threshold_decay": 0.5,
        "capacity": 0.25,
    }
    layer = layer_of(options)
    part = layer.block.feed_forward
    assert (part.options.experts, part.options.capacity, part.options.pool) == (5, 3.0, "batch")
    assert (part.bank.width, part.router.threshold.decay) == (9, 0.5)
    assert layer.options.capacity == 0.25
