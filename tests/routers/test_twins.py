"""Every router and every preset against its plain loop: outputs, gradients, auxiliary losses and what
training moves, at awkward lengths, with padding, with ties, under both rules.

B sequences, T tokens, D width.
"""

import pytest
import torch
from against_loop import equals_its_loop, model_equals_its_loop, model_of, routed_part
from layer_checks import full_except
from torch import Tensor

from modbench.model.config import ModelConfig
from modbench.model.decoder import Decoder
from modbench.routing.registry import installed_modules, router_class

PRESETS: dict[str, tuple[str, dict]] = {}
for router in installed_modules():
    PRESETS[router] = (router, {})
    for preset, options in router_class(router).presets.items():
        PRESETS[f"{router}:{preset}"] = (router, dict(options))

rules = pytest.mark.parametrize("rule", ["topk", "causal"])
schemes = [name for name in PRESETS if ":" not in name]
presets = pytest.mark.parametrize("name", PRESETS)
mostly_schemes = pytest.mark.parametrize("name", full_except(PRESETS, *schemes))


def built(name: str) -> Decoder:
    router, options = PRESETS[name]
    layers = 4 if router == "mixture_of_recursions" else 2
    shape = ModelConfig(vocabulary=199, width=8, layers=layers, heads=1, mlp_width=16)
    return model_of(router, options, shape, seen=40)


@rules
@presets
def test_a_model_equals_its_plain_loop(name: str, rule: str) -> None:
    model_equals_its_loop(built(name), (17, 63, 1), rule)


@rules
@pytest.mark.parametrize("lengths", [(63,), (63, 63, 63)], ids=str)
@mostly_schemes
def test_a_model_equals_its_plain_loop_without_padding(
    name: str, lengths: tuple[int, ...], rule: str
) -> None:
    model_equals_its_loop(built(name), lengths, rule)


@rules
@pytest.mark.parametrize("lengths", full_except([(1000,), (63, 1000, 411)], (63, 1000, 411)), ids=str)
@mostly_schemes
def test_a_thousand_tokens_equal_their_plain_loop(
    name: str, lengths: tuple[int, ...], rule: str
) -> None:
    equals_its_loop(routed_part(built(name)), lengths, rule)


@mostly_schemes
def test_what_is_measured_moves_nothing(name: str) -> None:
    """Out of training, and in training under the causal rule."""
    model = built(name)
    assert not model_equals_its_loop(model, (31, 17), "causal").moved
    model.zero_grad()
    assert not model_equals_its_loop(model.eval(), (31, 17), "topk").moved


def tied(model: Decoder) -> Tensor:
    """Tokens that routers, which see the first half of them, can't tell from others: of five kinds, on
    which their arithmetic is exact."""
    half = model.config.width // 2
    for name, parameter in model.named_parameters():
        if "router" in name and parameter.dim() == 2:
            parameter.data = (parameter.data * 64).round() / 64
            parameter.data[:, half:] = 0
    kinds = torch.randint(-16, 17, (5, half), dtype=torch.float64) / 8
    return torch.cat((kinds[torch.randint(5, (3, 63))], torch.randn(3, 63, half).double()), dim=-1)


@rules
@presets
def test_ties_go_to_the_earlier_token(name: str, rule: str) -> None:
    model = built(name)
    equals_its_loop(routed_part(model), (63, 40, 63), rule, x_BTD=tied(model), alive=False)


@rules
@presets
def test_a_router_that_says_nothing_prefers_the_first(name: str, rule: str) -> None:
    """All scores are equal, and equal to what thresholds start with: everything is a tie."""
    model = built(name)
    for key, parameter in model.named_parameters():
        if "router" in key or key.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    equals_its_loop(routed_part(model), (20, 9, 20), rule, alive=False)
