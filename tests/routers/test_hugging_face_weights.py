"""With the weights of models of Hugging Face transformers, ours compute the same.

B sequences, T tokens, D width.
"""

from collections.abc import Callable

import pytest
import torch
import transformers
from hugging_face_weights import (
    feed_forward_from_hugging_face,
    from_hugging_face,
    load_weights,
)
from torch import Tensor, nn

from modbench.model.config import ModelConfig
from modbench.model.context import Context
from modbench.model.decoder import Decoder
from modbench.routing.build import build_model
from modbench.routing.registry import build_router

SHAPE = ModelConfig(
    vocabulary=97, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48, tied_head=False, rope_base=5e5
)
#: Router and options of each whole family.
FAMILIES = {"llama": ("vanilla", {}), "mixtral": ("token_choice", {"experts": 5, "expert_width": 24})}


def theirs_of(family: str, tied: bool) -> nn.Module:
    common = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "tie_word_embeddings": tied,
        "attn_implementation": "eager",
        "pad_token_id": None,
    }
    if family == "llama":
        config = transformers.LlamaConfig(intermediate_size=48, **common)
        return random_weights(transformers.LlamaForCausalLM(config))
    config = transformers.MixtralConfig(
        intermediate_size=24,
        num_local_experts=5,
        num_experts_per_tok=2,
        sliding_window=None,
        experts_implementation="eager",
        **common,
    )
    return random_weights(transformers.MixtralForCausalLM(config))


def random_weights(module: nn.Module) -> nn.Module:
    """Far from ties and from zero; norms not 1."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() < 2), std=0.2)
    return module.train()


def shape_of(tied: bool) -> ModelConfig:
    return ModelConfig(**{**SHAPE.__dict__, "tied_head": tied})


def ours_of(family: str, tied: bool) -> Decoder:
    name, options = FAMILIES[family]
    return build_model(shape_of(tied), build_router(name, options), seed=1)


def near(one: Tensor, other: Tensor) -> None:
    """To float32's rounding of sums of a few hundred terms."""
    scale = other.abs().max().item()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(scale, 1.0))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_has_their_logits_and_gradients(family: str, tied: bool) -> None:
    theirs, ours = theirs_of(family, tied), ours_of(family, tied)
    load_weights(ours, from_hugging_face(theirs.state_dict(), ours.config))
    tokens_BT = torch.randint(97, (2, 41))
    ours_BTV = ours(tokens_BT, Context())
    theirs_BTV = theirs(tokens_BT).logits
    near(ours_BTV, theirs_BTV)
    weight_BTV = torch.randn_like(ours_BTV)
    for logits_BTV in (ours_BTV, theirs_BTV):
        (logits_BTV * weight_BTV).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    converted = from_hugging_face(gradients, ours.config)
    assert converted.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        near(parameter.grad, converted[name])


def mixtral() -> nn.Module:
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    return MixtralSparseMoeBlock(theirs_of("mixtral", False).config)


def olmoe() -> nn.Module:
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = transformers.OlmoeConfig(
        hidden_size=32,
        intermediate_size=6,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        experts_implementation="eager",
    )
    return OlmoeSparseMoeBlock(config)


def deepseek_v3(experts: int = 256, top_k: int = 8, groups: int = 8, top_groups: int = 4) -> nn.Module:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = transformers.DeepseekV3Config(
        hidden_size=32,
        moe_intermediate_size=6,
        n_routed_experts=experts,
        n_shared_experts=1,
        num_experts_per_tok=top_k,
        n_group=groups,
        topk_group=top_groups,
        norm_topk_prob=top_k > 1,
        routed_scaling_factor=2.5,
        experts_implementation="eager",
    )
    part = DeepseekV3MoE(config)
    nn.init.normal_(part.gate.e_score_correction_bias, std=0.3)
    return part


def qwen() -> nn.Module:
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    config = transformers.Qwen2MoeConfig(
        hidden_size=32,
        moe_intermediate_size=6,
        shared_expert_intermediate_size=20,
        num_experts=12,
        num_experts_per_tok=4,
        norm_topk_prob=False,
        experts_implementation="eager",
    )
    return Qwen2MoeSparseMoeBlock(config)


#: Our preset and options, and their module.
PARTS: dict[str, tuple[str, dict, Callable[[], nn.Module]]] = {
    "mixtral": ("mixtral", {"experts": 5, "expert_width": 24}, mixtral),
    "olmoe": ("olmoe", {}, olmoe),
    "deepseek_v3": ("deepseek_v3", {"expert_width": 6}, deepseek_v3),
    "qwen": (
        "mixtral",
        {
            "experts": 12,
            "top_k": 4,
            "renormalise": False,
            "expert_width": 6,
            "shared_experts": 1,
            "shared_width": 20,
            "shared_gate": True,
        },
        qwen,
    ),
}


def part_of(family: str) -> tuple[nn.Module, nn.Module]:
    preset, options, build = PARTS[family]
    router = build_router("token_choice", {**build_router("token_choice").presets[preset], **options})
    return build_model(SHAPE, router, seed=1).layers[0].feed_forward, random_weights(build())


@pytest.mark.parametrize("family", PARTS)
def test_a_layer_has_their_outputs_and_gradients(family: str) -> None:
    ours, theirs = part_of(family)
    load_weights(ours, feed_forward_from_hugging_face(theirs.state_dict()))
    x_BTD = torch.randn(3, 63, 32)
    mine_BTD, its_BTD = (x_BTD.clone().requires_grad_() for _ in range(2))
    y_BTD, wanted_BTD = ours(mine_BTD, Context()), theirs(its_BTD)
    near(y_BTD, wanted_BTD)
    weight_BTD = torch.randn_like(x_BTD)
    (y_BTD * weight_BTD).sum().backward()
    (wanted_BTD * weight_BTD).sum().backward()
    near(mine_BTD.grad, its_BTD.grad)
    gradients = {name: torch.zeros_like(tensor) for name, tensor in theirs.state_dict().items()}
    gradients |= {name: parameter.grad for name, parameter in theirs.named_parameters()}
    converted = feed_forward_from_hugging_face(gradients)
    for name, parameter in ours.named_parameters():
        near(parameter.grad, converted[name])


@pytest.mark.parametrize(
    ("experts", "top_k", "groups", "top_groups"),
    [
        (16, 4, 4, 2),
        (16, 4, 4, 1),
        (16, 2, 4, 2),
        pytest.param(24, 8, 3, 2, marks=pytest.mark.full),
        pytest.param(32, 1, 8, 1, marks=pytest.mark.full),
        pytest.param(64, 6, 8, 5, marks=pytest.mark.full),
    ],
)
def test_groups_are_theirs_where_two_experts_are_due_to_each(
    experts: int, top_k: int, groups: int, top_groups: int
) -> None:
    """DeepseekV3MoE scores a group by its best two experts."""
    theirs = random_weights(deepseek_v3(experts, top_k, groups, top_groups)).eval()
    options = {
        **build_router("token_choice").presets["deepseek_v3"],
        "experts": experts,
        "top_k": top_k,
        "groups": groups,
        "top_groups": top_groups,
        "renormalise": top_k > 1,
        "expert_width": 6,
    }
    ours = build_model(SHAPE, build_router("token_choice", options)).layers[0].feed_forward.eval()
    load_weights(ours, feed_forward_from_hugging_face(theirs.state_dict()))
    x_BTD = torch.randn(3, 63, 32)
    equal = torch.allclose(ours(x_BTD, Context()), theirs(x_BTD), rtol=1e-5, atol=1e-5)
    assert equal == (-(-top_k // top_groups) == 2)
