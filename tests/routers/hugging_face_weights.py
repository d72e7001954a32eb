"""Weights from the names and shapes that Hugging Face transformers 5 gives them.

Whole decoders: Llama's (dense) and Mixtral's (experts). Feed-forward parts alone, for models that
differ elsewhere: OLMoE's, DeepSeek-V3's and Qwen-MoE's too.

E experts, F hidden width, D model width.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modbench.model.config import ModelConfig

State = dict[str, Tensor]


@dataclass(frozen=True)
class _Part:
    """One of our tensors and those of Hugging Face that stacked, rows on rows, are it."""

    ours: str
    theirs: tuple[str, ...]


def _mlp(ours: str, theirs: str) -> tuple[_Part, ...]:
    """SwiGLU: the gate's rows stand above the value's, which Hugging Face calls up."""
    return (
        _Part(f"{ours}up.weight", (f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight")),
        _Part(f"{ours}down.weight", (f"{theirs}down_proj.weight",)),
    )


_ROUTED = (
    _Part("router.weight", ("gate.weight",)),
    _Part("bank.up", ("experts.gate_up_proj",)),
    _Part("bank.down", ("experts.down_proj",)),
)
#: Feed-forward parts, by what they must have; names relative to a block's feed-forward part.
_DENSE = _mlp("", "")
_BIAS = _Part("router.bias.value", ("gate.e_score_correction_bias",))
_SHARED = _mlp("shared.", "shared_experts.")  # DeepSeek's
_GATED = (
    *_mlp("shared.", "shared_expert."),
    _Part("shared_gate.weight", ("shared_expert_gate.weight",)),
)  # Qwen's


def load_weights(module: nn.Module, converted: State) -> None:
    """Load all weights of ``module``, without the counters of its noise, which have no counterpart."""
    state = module.state_dict()
    module.load_state_dict({**state, **converted})
    assert converted.keys() == {name for name in state if "noise." not in name}


def feed_forward_from_hugging_face(state: Mapping[str, Tensor]) -> State:
    """Weights for ``load_state_dict`` of a block's feed-forward part, from those of a LlamaMLP,
    MixtralSparseMoeBlock, OlmoeSparseMoeBlock, DeepseekV3MoE or Qwen2MoeSparseMoeBlock."""
    return _joined(dict(state), _feed_forward_parts(state))


def from_hugging_face(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    """Weights for ``load_state_dict`` of a decoder of shape ``config``, from a LlamaForCausalLM's or a
    MixtralForCausalLM's."""
    theirs = dict(state)
    if config.tied_head and "lm_head.weight" in theirs:
        head = theirs.pop("lm_head.weight")
        assert torch.equal(head, theirs.get("model.embed_tokens.weight", head))
    return _joined(theirs, _decoder_parts(theirs, config))


def _feed_forward_parts(names: Iterable[str]) -> tuple[_Part, ...]:
    """The parts of a feed-forward module with ``names``."""
    names = set(names)

    def has(part: _Part) -> bool:
        return any(name in names for name in part.theirs)

    if not any(map(has, _ROUTED)):
        return _DENSE
    bias = (_BIAS,) if has(_BIAS) else ()
    shared = _GATED if any(map(has, _GATED)) else _SHARED if any(map(has, _SHARED)) else ()
    return (*_ROUTED, *bias, *shared)


def _decoder_parts(names: Iterable[str], config: ModelConfig) -> tuple[_Part, ...]:
    parts = [
        _Part("embedding.weight", ("model.embed_tokens.weight",)),
        _Part("norm.weight", ("model.norm.weight",)),
    ]
    if not config.tied_head:
        parts.append(_Part("head.weight", ("lm_head.weight",)))
    for layer in range(config.layers):
        mine, its = f"layers.{layer}.", f"model.layers.{layer}."
        within = [name.removeprefix(f"{its}mlp.") for name in names if name.startswith(f"{its}mlp.")]
        parts += [
            _Part(f"{mine}attention_norm.weight", (f"{its}input_layernorm.weight",)),
            _Part(
                f"{mine}attention.qkv.weight",
                tuple(f"{its}self_attn.{name}_proj.weight" for name in "qkv"),
            ),
            _Part(f"{mine}attention.out.weight", (f"{its}self_attn.o_proj.weight",)),
            _Part(f"{mine}feed_forward_norm.weight", (f"{its}post_attention_layernorm.weight",)),
        ]
        parts += [
            _Part(f"{mine}feed_forward.{part.ours}", tuple(f"{its}mlp.{name}" for name in part.theirs))
            for part in _feed_forward_parts(within)
        ]
    return tuple(parts)


def _joined(state: State, parts: Iterable[_Part]) -> State:
    converted = {part.ours: torch.cat([state.pop(name) for name in part.theirs]) for part in parts}
    assert not state
    return converted
