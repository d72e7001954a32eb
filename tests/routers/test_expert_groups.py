"""Experts in groups equal Hugging Face's DeepseekV3MoE wherever a group is scored by two experts.

B sequences, T tokens, D width.
"""

import pytest
import torch
import transformers
from hugging_face_weights import feed_forward_from_hugging_face, load_weights
from layer_checks import full_except
from torch import nn

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.routing.build import build_model
from modbench.routing.registry import build_router, preset_options

SHAPE = ModelConfig(vocabulary=97, width=32, layers=1, heads=4, mlp_width=48)


#: n_routed_experts, num_experts_per_tok, n_group, topk_group.
SETTINGS = [
    (16, 4, 4, 2),
    (16, 4, 4, 1),
    (16, 2, 4, 2),
    (16, 6, 4, 3),
    (24, 3, 6, 1),
    (24, 8, 3, 2),
    (32, 8, 8, 2),
    (32, 8, 16, 8),
    (32, 1, 8, 4),
    (64, 6, 8, 5),
]


def parts(experts: int, top_k: int, groups: int, top_groups: int) -> list[nn.Module]:
    """Ours and theirs, with the same random weights and a bias that changes choices."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    renormalise = top_k > 1
    config = transformers.DeepseekV3Config(
        hidden_size=32,
        moe_intermediate_size=6,
        n_routed_experts=experts,
        n_shared_experts=1,
        num_experts_per_tok=top_k,
        n_group=groups,
        topk_group=top_groups,
        norm_topk_prob=renormalise,
        routed_scaling_factor=2.5,
        experts_implementation="eager",
    )
    theirs = DeepseekV3MoE(config)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(theirs.gate.e_score_correction_bias, std=0.3)
    options = {
        **preset_options("token_choice:deepseek_v3")[1],
        "experts": experts,
        "top_k": top_k,
        "groups": groups,
        "top_groups": top_groups,
        "renormalise": renormalise,
        "expert_width": 6,
    }
    ours = build_model(SHAPE, build_router("token_choice", options)).layers[0].feed_forward
    load_weights(ours, feed_forward_from_hugging_face(theirs.state_dict()))
    return [ours.eval(), theirs.eval()]


@pytest.mark.parametrize("setting", full_except(SETTINGS, *SETTINGS[:3]), ids=str)
def test_the_papers_groups_are_hugging_faces_where_two_experts_are_due_to_each(
    setting: tuple[int, int, int, int],
) -> None:
    _, top_k, _, top_groups = setting
    ours, theirs = parts(*setting)
    x_BTD = torch.randn(3, 63, 32)
    equal = torch.allclose(ours(x_BTD, Context()), theirs(x_BTD), rtol=1e-5, atol=1e-5)
    assert equal == (-(-top_k // top_groups) == 2)
