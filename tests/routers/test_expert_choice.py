"""Expert choice against a plain loop, its pools, its thresholds, and what every scheme must show.

B sequences, T tokens, D width, E experts.
"""

import pytest
import torch
from against_loop import equals_its_loop, model_of

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.expert_router import RoutedExperts
from modbench.routing.registry import build_router

SHAPE = ModelConfig(vocabulary=97, width=32, layers=2, heads=4, mlp_width=64)

OPTIONS: dict[str, dict] = {
    "default": {},
    "one-of-three": {"experts": 3, "capacity": 1.0, "expert_width": 9},
    "batch": {"pool": "batch"},
    "everyone": {"experts": 2, "capacity": 2.0, "pool": "batch"},
    "half": {"capacity": 0.5, "expert_width": 5},
}


def part_of(options: dict, shape: ModelConfig = SHAPE) -> RoutedExperts:
    part = model_of("expert_choice", options, shape).layers[0].feed_forward
    assert isinstance(part, RoutedExperts)
    return part


@pytest.mark.parametrize("rule", ["topk", "causal"])
@pytest.mark.parametrize("lengths", [(17, 63, 1), (5, 5)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_equals_its_plain_loop(options: dict, lengths: tuple[int, ...], rule: str) -> None:
    equals_its_loop(part_of(options), lengths, rule)


@pytest.mark.parametrize(("capacity", "width"), [(0.7, 3840), (0.3, 8960)])
def test_a_width_is_divided_by_the_capacity_as_a_decimal_number(capacity: float, width: int) -> None:
    """2688 / 0.7 is 3840; floating-point division differs."""
    shape = ModelConfig(vocabulary=97, width=8, layers=1, heads=1, mlp_width=2688)
    with torch.device("meta"):
        layer = build_router("expert_choice", {"capacity": capacity}).build_layer(shape, 0)
    assert layer.feed_forward.bank.width == width


def test_other_sequences_change_training_with_a_batch_pool_and_no_prediction() -> None:
    x_BTD = torch.randn(3, 20, SHAPE.width, dtype=torch.float64)
    for pool, rule, alike in (
        ("batch", "topk", False),
        ("sequence", "topk", True),
        ("batch", "causal", True),
        ("sequence", "causal", True),
    ):
        part = part_of({"pool": pool})
        together, alone = part(x_BTD, Context(selection=rule)), part(x_BTD[:1], Context(selection=rule))
        assert torch.allclose(together[0], alone[0]) == alike, (pool, rule)
